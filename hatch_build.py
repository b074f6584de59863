"""Compile the search kernels when the package is built; `python hatch_build.py` compiles them in place.

One shared object without dependencies, loaded by `lakehouse.index.kernels`.  It holds a variant for every CPU of
its architecture, so no `-march=native`: a wheel built here runs elsewhere.

`python hatch_build.py hnswlib SOURCE FOLDER` compiles hnswlib, unpacked in SOURCE, for the levels of x86-64 that
`lakehouse.index.native` chooses from, into FOLDER: images put them beside it.  Elsewhere it compiles nothing.
"""

import os
import platform
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
LEVELS = (2, 3, 4)
HNSWLIB_FLAGS = ("-O3", "-std=c++14", "-shared", "-fPIC", "-pthread", "-fvisibility=hidden", "-s")
HNSWLIB_VERSION = '-DVERSION_INFO="0.8.0"'


def compile_kernels(root: Path) -> Path:
    """Compile `SOURCE` into `TARGET` below `root`, atomically."""
    return _compile([*FLAGS, str(root / SOURCE)], root / TARGET, "the search kernels")


def compile_hnswlib(source: Path, folder: Path, levels: tuple[int, ...] = LEVELS) -> list[Path]:
    """One extension module per level of x86-64; none on another architecture."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return []
    import numpy as np
    import pybind11

    includes = (source / "hnswlib", pybind11.get_include(), np.get_include(), sysconfig.get_path("include"))
    common = [*HNSWLIB_FLAGS, HNSWLIB_VERSION, *(f"-I{path}" for path in includes)]
    common.append(str(source / "python_bindings" / "bindings.cpp"))
    folder.mkdir(parents=True, exist_ok=True)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    return [
        _compile([f"-march=x86-64-v{level}", *common], folder / f"_hnswlib_v{level}{suffix}", "hnswlib")
        for level in levels
    ]


def _compile(arguments: list[str], target: Path, what: str) -> Path:
    compiler = shlex.split(os.environ.get("CXX", "")) or [
        shutil.which("g++") or shutil.which("clang++") or ""
    ]
    if not compiler[0]:
        raise SystemExit(f"lakehouse needs a C++17 compiler to build {what}: install g++, or set CXX")
    partial = target.with_suffix(f".so.{os.getpid()}")
    command = [*compiler, *arguments, "-o", str(partial)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        partial.unlink(missing_ok=True)
        raise SystemExit(f"{what} did not compile: {shlex.join(command)}\n{done.stderr}")
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


def main(arguments: list[str]) -> None:
    match arguments:
        case []:
            made = [compile_kernels(Path(__file__).resolve().parent)]
        case ["hnswlib", source, folder]:
            made = compile_hnswlib(Path(source), Path(folder))
        case _:
            raise SystemExit("usage: python hatch_build.py [hnswlib SOURCE FOLDER]")
    sys.stdout.write("".join(f"{path}\n" for path in made))


if __name__ == "__main__":
    main(sys.argv[1:])
