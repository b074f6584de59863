"""Compile the search kernels when the package is built; `python hatch_build.py` compiles them in place.

One shared object without dependencies, loaded by `lakehouse.index.kernels`.  It holds a variant for every CPU of
its architecture, so no `-march=native`: a wheel built here runs elsewhere.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # in place, without the build backend
    BuildHookInterface = object

SOURCE = Path("dataplane/lakehouse/index/kernels.cpp")
TARGET = Path("dataplane/lakehouse/index/_kernels.so")
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread", "-fvisibility=default", "-Wall", "-Wextra")


def compile_kernels(root: Path) -> Path:
    """Compile `SOURCE` into `TARGET` below `root`, atomically."""
    compiler = shlex.split(os.environ.get("CXX", "")) or [
        shutil.which("g++") or shutil.which("clang++") or ""
    ]
    if not compiler[0]:
        raise SystemExit(
            "lakehouse needs a C++17 compiler to build its search kernels: install g++, or set CXX"
        )
    target = root / TARGET
    partial = target.with_suffix(f".so.{os.getpid()}")
    command = [*compiler, *FLAGS, str(root / SOURCE), "-o", str(partial)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        partial.unlink(missing_ok=True)
        raise SystemExit(f"the search kernels did not compile: {shlex.join(command)}\n{done.stderr}")
    partial.replace(target)
    return target


class KernelsHook(BuildHookInterface):  # type: ignore[misc,type-arg,unused-ignore]
    """Compiles the kernels into wheels and editable installs; a source archive carries the source only."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        compile_kernels(Path(self.root))
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["infer_tag"] = False
        build_data["tag"] = f"py3-none-{platform}"


if __name__ == "__main__":
    sys.stdout.write(f"{compile_kernels(Path(__file__).resolve().parent)}\n")
