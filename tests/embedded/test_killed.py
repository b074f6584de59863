"""kill -9 while files are read, while an index is built, while items move: a restart ends where it would have."""

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from live_lake import LiveLake

LAKE = """
apiVersion: lakehouse.agentview.dev/v1alpha1
kind: Dataset
metadata: {name: d}
spec:
  sources: [{uri: "d-*.parquet"}]
---
apiVersion: lakehouse.agentview.dev/v1alpha1
kind: VectorIndex
metadata: {name: main}
spec:
  dimension: 16
  source: {dataset: {name: d, idColumn: id, vectorColumn: embedding}}
---
apiVersion: lakehouse.agentview.dev/v1alpha1
kind: VectorIndex
metadata: {name: fresh}
spec:
  dimension: 16
  drain: {into: main, maxItems: 3, maxAge: 1h}
"""
ROWS = 6_000


@pytest.mark.parametrize("seed", range(2))
def test_kill_9_at_any_moment_and_started_again_it_ends_where_it_would_have(
    up: Any, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    vectors = np.random.default_rng(seed).normal(size=(ROWS, 16)).astype(np.float32)
    home = LiveLake(tmp_path)
    for part in range(2):
        rows = range(part, ROWS, 2)
        home.parquet(f"d-{part}.parquet", [f"i{j}" for j in rows], [vectors[j].tolist() for j in rows])
    lake = up(LAKE)
    for _ in range(4):
        time.sleep(rng.uniform(0, 0.6))
        lake.kill()
        lake.start()
    lake.until_ready("d", kind="Dataset")
    lake.until_ready("main", "fresh")
    assert lake.version("d") == 1
    assert lake.get("/vectors/index/main")["length"] == ROWS
    for number in range(3):
        assert (
            lake.add("fresh", f"n{number}-a", f"n{number}-b", f"n{number}-c", dimension=16).status_code == 200
        )
        time.sleep(rng.uniform(0.8, 1.4))  # a drain begins within a second
        lake.kill()
        lake.start()
    lake.until(
        lambda: (_length(lake, "main"), _length(lake, "fresh")) == (ROWS + 9, 0),
        "everything is drained, once",
    )
    assert _leftovers(tmp_path) == []


def _length(lake: LiveLake, index: str) -> int:
    answer = lake.http.get(f"/v1/vectors/index/{index}")
    return int(answer.json()["length"]) if answer.status_code == 200 else -1


def _leftovers(home: Path) -> list[str]:
    """Working files that no process uses any more."""
    return [str(path) for path in (home / "data").rglob("build-*.parquet")]
