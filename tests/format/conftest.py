"""The Go program that stands for the old system, built once per change of its source."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "go"
BUILD_TIMEOUT_S = 240


@pytest.fixture(scope="session")
def old_program() -> Path:
    """The built program, or a skip that says what is missing."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("needs the Go toolchain: no `go` in PATH")
    digest = hashlib.sha256()
    for path in sorted(SOURCE.iterdir()):
        digest.update(path.read_bytes())
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lakehouse" / "bin"
    program = folder / f"lhv1-{digest.hexdigest()[:12]}"
    if program.exists():
        return program
    fetched = _go(go, "mod", "download")
    if fetched.returncode:
        pytest.skip(f"needs github.com/coder/hnsw and what it imports: {fetched.stderr.strip()[-300:]}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = _go(go, "build", "-o", f"{scratch}/lhv1", ".")
        assert built.returncode == 0, built.stderr
        Path(scratch, "lhv1").replace(program)
    return program


def _go(go: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"}
    return subprocess.run(
        [go, *arguments],
        cwd=SOURCE,
        env=environment,
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )
