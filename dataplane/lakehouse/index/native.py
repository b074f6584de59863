"""hnswlib in the fastest build that this CPU can run.

hnswlib chooses its instructions when it is compiled.  A normal installation has the one build that pip made; an
image carries more beside this module, one per level of x86-64 (`_hnswlib_v3…so`, made by `hatch_build.py`), because
the build that runs everywhere takes twice the time, and a faster one ends in an illegal instruction elsewhere.  Our
own kernels hold all their variants in one file and need none of this.  What it does not do: build anything.
"""

import importlib
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

MODULE = "hnswlib"
LEVELS = {
    2: frozenset({"cx16", "lahf_lm", "pni", "popcnt", "sse4_1", "sse4_2", "ssse3"}),
    3: frozenset({"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}),
    4: frozenset({"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}),
}
"""What each level of x86-64 adds to the one before it, in the words of /proc/cpuinfo."""
CPU_INFO = Path("/proc/cpuinfo")


def level(flags: frozenset[str]) -> int:
    """The highest level of x86-64 that a CPU with these flags has; 1 where it has none of `LEVELS`."""
    reached = 1
    for number, needed in sorted(LEVELS.items()):
        if not needed <= flags:
            break
        reached = number
    return reached


def cpu_flags(info: Path = CPU_INFO) -> frozenset[str]:
    """The flags that every core has; empty where the kernel does not tell, as on arm64."""
    try:
        lines = info.read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    cores = [frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")]
    return frozenset.intersection(*cores) if cores else frozenset()


def file_name(number: int) -> str:
    """The name of the build for one level, for this Python on this system."""
    return f"_hnswlib_v{number}{importlib.machinery.EXTENSION_SUFFIXES[0]}"


def variant(flags: frozenset[str], folder: Path) -> Path | None:
    """The fastest build in `folder` for a CPU with these flags; None where there is none."""
    paths = (folder / file_name(number) for number in range(level(flags), 1, -1))
    return next((path for path in paths if path.is_file()), None)


def load(path: Path | None) -> ModuleType:
    """hnswlib from `path`, or the installed one.  A process has one hnswlib, so the first is every later one."""
    if MODULE in sys.modules or path is None:
        return importlib.import_module(MODULE)
    spec = importlib.util.spec_from_file_location(MODULE, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"this is no extension module. path=`{path}`")
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[MODULE]
        raise
    return module


hnswlib = load(variant(cpu_flags(), Path(__file__).resolve().parent))
"""The module that everything here imports instead of hnswlib itself."""
