"""The demo runs from end to end, again over its own remains, and ends its server when asked to."""

import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from live_server import ROOT, environment, port_is_free
from ports import free_port

pytestmark = pytest.mark.xdist_group("demo")


def demo(folder: Path, port: int, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "examples/demo.py", "--folder", str(folder), "--port", str(port), *args],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment({"CI": "true", "COLUMNS": "120"}),
        stdin=subprocess.DEVNULL,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-4_000:]
    return done.stdout + done.stderr


def test_the_demo_leaves_a_server_up_runs_again_over_it_and_stops_it(tmp_path: Path) -> None:
    folder, port = tmp_path / "demo", free_port()
    first = demo(folder, port)
    try:
        safe = re.search(r"all ([\d,]+) acknowledged items are there, bit for bit", first)
        assert safe is not None
        assert int(safe[1].replace(",", "")) >= 1_500
        assert "the rest not at all" in first
        assert "Version control" in first, "SQL joined the index with two datasets"
        assert re.search(r"dataset/packages\s+True\s+2\s+5115", first), (
            "the edited YAML made a second version"
        )
        assert re.search(r"vectorindex/packages-restored\s+True\s+\S+\s+1\s+5115", first)
        assert (folder / "packages-v2.lhv1").stat().st_size > 0
        answer = httpx.get(f"http://127.0.0.1:{port}/v1/vectors/index/packages", timeout=60).json()
        assert answer["length"] == 5_115
    finally:
        again = demo(folder, port, "--stop")
    assert "stopped the server of an earlier run" in again
    assert "bit for bit" in again
    assert port_is_free(port)


def test_only_stop_leaves_a_process_alone_that_is_not_the_demos(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        (tmp_path / "server.pid").write_text(str(other.pid))
        demo(tmp_path, free_port(), "--only-stop")
        assert other.poll() is None
    finally:
        other.kill()
        other.communicate()
