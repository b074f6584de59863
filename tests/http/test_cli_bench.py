"""The benchmark runs on a small part of the data and writes all that it promises; it asserts no speed."""

import json
import subprocess
from pathlib import Path

from live_server import ROOT, command_line, environment


def test_a_small_benchmark_measures_everything_and_draws_it(tmp_path: Path) -> None:
    done = subprocess.run(
        command_line(
            "bench",
            "--file",
            str(ROOT / "examples" / "debian-packages.parquet"),
            "--rows",
            "2000",
            "--queries",
            "50",
            "--rounds",
            "1",
            "--out",
            str(tmp_path),
        ),
        capture_output=True,
        text=True,
        env=environment({"COLUMNS": "160"}),
        stdin=subprocess.DEVNULL,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "targets" in done.stdout
    result = json.loads((tmp_path / "bench.json").read_text())
    assert result["ingest"]["visible_at_once"]
    assert len(result["targets"]) == 6 + len(result["filters"]) == 10
    for form in ("peer", "peer_batch", "json", "binary", "batch"):
        for step in result["settled"][form]:
            assert step["cpu_us"] > 0
            assert 0 < step["recall"] <= 1
    for found in result["filters"]:
        assert found["recall"] > 0.9
    assert (tmp_path / "recall-throughput.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "recall-throughput.png"]
