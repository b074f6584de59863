"""Which build of hnswlib a CPU gets, and that each of them builds the same graphs as well."""

import fcntl
import importlib.machinery
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import numpy as np
import pytest

from lakehouse.index import native

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("LAKEHOUSE_TEST_BIN", Path.home() / ".cache" / "lakehouse" / "bin"))
V2, V3, V4 = (frozenset().union(*(native.LEVELS[n] for n in range(2, top + 1))) for top in (2, 3, 4))


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        (frozenset(), 1),
        (V2, 2),
        (V2 | {"avx", "avx2"}, 2),
        (V3, 3),
        (V3 | {"avx512f"}, 3),
        (V4, 4),
        (V4 | {"sse4a", "amx_tile"}, 4),
        (V4 - {"fma"}, 2),
        (V4 - {"popcnt"}, 1),
    ],
)
def test_a_cpu_has_the_highest_level_of_which_it_lacks_nothing(flags: frozenset[str], level: int) -> None:
    assert native.level(flags) == level


def test_the_fastest_build_that_the_cpu_can_run_is_taken(tmp_path: Path) -> None:
    for level in (2, 3, 4):
        (tmp_path / native.file_name(level)).touch()
    chosen = {
        level: native.variant(flags, tmp_path)
        for level, flags in ((1, frozenset[str]()), (2, V2), (3, V3), (4, V4))
    }
    assert chosen == {1: None} | {level: tmp_path / native.file_name(level) for level in (2, 3, 4)}


def test_a_build_that_is_missing_makes_way_for_the_next() -> None:
    folder = Path(__file__).parent
    assert native.variant(V4, folder) is None


def test_a_slower_build_serves_a_faster_cpu(tmp_path: Path) -> None:
    (tmp_path / native.file_name(3)).touch()
    assert native.variant(V4, tmp_path) == tmp_path / native.file_name(3)
    assert native.variant(V2, tmp_path) is None


def test_a_core_that_lacks_a_flag_decides_for_all(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nflags\t: avx avx2 fma\n\nprocessor : 1\nflags\t: avx fma\n")
    assert native.cpu_flags(info) == {"avx", "fma"}


def test_a_cpu_without_flags_gets_the_installed_build(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nFeatures : fp asimd\n")  # as arm64 says it
    assert native.cpu_flags(info) == frozenset()
    assert native.cpu_flags(tmp_path / "missing") == frozenset()


def test_a_file_is_named_for_this_python() -> None:
    assert native.file_name(3) == f"_hnswlib_v3{sysconfig.get_config_var('EXT_SUFFIX')}"
    assert importlib.machinery.EXTENSION_SUFFIXES[0] in native.file_name(4)


# --- the builds themselves, as images have them

PROBE = """
import importlib.util, sys, threading
from pathlib import Path
sys.path[:0] = [{dataplane!r}]
spec = importlib.util.spec_from_file_location("native", {native!r})
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)
assert native.hnswlib.__file__ == {path!r}, native.hnswlib.__file__
import lakehouse.index.engine as engine
assert engine.hnswlib is native.hnswlib
import numpy as np
from lakehouse.core.types import Distance
from lakehouse.index.arena import Arena
vectors = np.random.default_rng(5).standard_normal((3000, 48), dtype=np.float32)
params = engine.GraphParams(Distance.COSINE, 16, 100)
links = engine.HnswlibEngine().build(vectors, params, Arena(Path({folder!r})), 1, threading.Event())
np.save({out!r}, np.asarray(links.level0))
"""


@pytest.fixture(scope="module")
def builds() -> list[Path]:
    """hnswlib for every level that this CPU has; compiled once from the locked source and kept."""
    if sysconfig.get_platform() != "linux-x86_64":
        pytest.skip("only x86-64 has levels")
    folder = CACHE / f"hnswlib-0.8.0-{sys.implementation.cache_tag}"
    wanted = [folder / native.file_name(level) for level in (2, 3, 4)]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not all(path.is_file() for path in wanted):
            _compile(folder)
    return [
        path
        for level, path in zip((2, 3, 4), wanted, strict=True)
        if level <= native.level(native.cpu_flags())
    ]


def _compile(folder: Path) -> None:
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--require-hashes",
        "--no-deps",
        "--no-binary",
        ":all:",
    ]
    pip += ["--no-build-isolation", "--dest", str(folder), "-r", str(ROOT / ".ci/requirements/native.lock")]
    fetched = subprocess.run(pip, capture_output=True, text=True, check=False, timeout=120)
    if fetched.returncode != 0:
        pytest.skip(f"hnswlib's source cannot be had: {fetched.stderr[-300:]}")
    (archive,) = folder.glob("hnswlib-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    command = [
        sys.executable,
        str(ROOT / "hatch_build.py"),
        "hnswlib",
        str(folder / archive.name[: -len(".tar.gz")]),
    ]
    subprocess.run([*command, str(folder)], check=True, timeout=250)


@pytest.mark.timeout(400)
def test_every_build_makes_graphs_that_are_alike(builds: list[Path], tmp_path: Path) -> None:
    assert builds, "this CPU has not even x86-64-v2, which numpy needs"
    graphs = []
    for path in builds:
        folder = tmp_path / path.name
        folder.mkdir()
        copied = Path(shutil.copy(path, folder))  # beside the module that chooses, as in an image
        chooser = shutil.copy(native.__file__, folder)
        out = folder / "graph.npy"
        script = PROBE.format(
            dataplane=str(ROOT / "dataplane"),
            native=str(chooser),
            path=str(copied),
            folder=str(folder),
            out=str(out),
        )
        subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
        graphs.append(np.load(out))
    first = graphs[0]
    for graph in graphs[1:]:  # sums in another order: a few links differ, as many as there are do not
        same = [
            len(np.intersect1d(a[1 : 1 + a[0]], b[1 : 1 + b[0]])) / max(a[0], 1)
            for a, b in zip(first, graph, strict=True)
        ]
        assert float(np.mean(same)) > 0.98
        assert abs(int(graph[:, 0].sum()) - int(first[:, 0].sum())) < 0.01 * int(first[:, 0].sum())
