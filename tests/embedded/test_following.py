"""An index that follows a dataset: each version replaces the one before, and no query fails or sees two at once."""

import threading
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa

from live_lake import LiveLake

FOLLOWED = """
apiVersion: lakehouse.agentview.dev/v1alpha1
kind: Dataset
metadata: {name: d}
spec:
  sources: [{uri: d.parquet}]
  retention: {keepVersions: 2}
---
apiVersion: lakehouse.agentview.dev/v1alpha1
kind: VectorIndex
metadata: {name: followed}
spec:
  dimension: 2
  distance: euclidean
  source: {dataset: {name: d, idColumn: id, vectorColumn: embedding, metadataColumns: [marker], follow: Latest}}
"""
REFRESHES = 20
ROWS = 60
K = 40
PAUSE_S = 0.005
"""Between two queries of a reader: many fall on each version, and the builds get the machine meanwhile."""


def publish(lake: LiveLake, marker: int) -> None:
    """Other ids, other vectors and another number of rows in each version."""
    rows = ROWS + marker
    lake.parquet(
        "d.parquet",
        [f"v{marker}-{j}" for j in range(rows)],
        [[float(j), float(marker)] for j in range(rows)],
        marker=pa.array([marker] * rows),
    )


class Reader(threading.Thread):
    """Queries again and again, and keeps what must not have been seen."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self.ended = threading.Event()
        self.wrong: list[str] = []
        self.seen: list[int] = []

    def run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60) as http:
            while not self.ended.wait(PAUSE_S):
                self._look(http)

    def _look(self, http: httpx.Client) -> None:
        answer = http.post("/v1/vectors/index/followed/search", json={"vector": [5, 5], "k": K})
        if answer.status_code != 200:
            self.wrong.append(f"{answer.status_code} {answer.text}")
            return
        hits = answer.json()["results"]
        markers = {hit["metadata"]["marker"] for hit in hits}
        ids = {hit["id"].partition("-")[0] for hit in hits}
        if len(hits) != K or len(markers) != 1 or ids != {f"v{next(iter(markers))}"}:
            self.wrong.append(f"{len(hits)} hits of {markers} {ids}")
        self.seen.append(min(markers))


def test_no_query_fails_or_mixes_versions_while_twenty_replace_each_other(up: Any, tmp_path: Path) -> None:
    publish(LiveLake(tmp_path), 1)
    lake = up(FOLLOWED)
    lake.until_ready("followed")
    readers = [Reader(lake.server.url) for _ in range(2)]
    for reader in readers:
        reader.start()
    for marker in range(2, REFRESHES + 2):
        publish(lake, marker)
        lake.refresh("d", str(marker))
        lake.until(lambda marker=marker: _built(lake) == marker, f"version {marker} is served")
    for reader in readers:
        reader.ended.set()
        reader.join(60)
    assert [reader.wrong[:3] for reader in readers] == [[], []]
    for reader in readers:
        assert reader.seen == sorted(reader.seen), "a version came back"
        assert len(set(reader.seen)) > REFRESHES // 4
    assert lake.get("/vectors/index/followed")["length"] == ROWS + REFRESHES + 1
    lake.until(lambda: len(lake.get("/catalog/versions/d")["versions"]) <= 2, "old versions are retired")


def _built(lake: LiveLake) -> int:
    status = lake.get("/resources/vix/followed").get("status", {})
    return int(status.get("source", {}).get("version", 0))


def test_a_version_that_cannot_be_an_index_is_told_and_the_one_before_is_served(
    up: Any, tmp_path: Path
) -> None:
    publish(LiveLake(tmp_path), 1)
    lake = up(FOLLOWED)
    lake.until_ready("followed")
    ids = [f"x{j}" for j in range(4)]
    lake.parquet("d.parquet", ids, [[1, 2], [1], [1, 2], [1, 2]], marker=pa.array([2] * 4))
    lake.refresh("d", "uneven")
    told = lake.until(lambda: _false(lake, "SourceResolved") or _false(lake, "UpToDate"))
    assert "DimensionMismatch" in told[1] or "x1" in told[2], told
    lake.parquet("d.parquet", ["x", "y", "x"], [[1, 2], [3, 4], [5, 6]], marker=pa.array([3] * 3))
    lake.refresh("d", "twice")
    told = lake.until(
        lambda: (found := _false(lake, "UpToDate")) and "occurs twice" in found[2] and found, "twice"
    )
    assert "`x`" in told[2]
    assert lake.get("/vectors/index/followed")["length"] == ROWS + 1
    publish(lake, 4)
    lake.refresh("d", "well")
    lake.until(lambda: lake.get("/vectors/index/followed")["length"] == ROWS + 4, "the next one is served")


def _follow(lake: LiveLake, follow: str, **annotations: str) -> None:
    now = lake.get("/resources/vix/followed")
    wanted = {part: now[part] for part in ("apiVersion", "kind", "spec")}
    wanted["spec"]["source"]["dataset"]["follow"] = follow
    answer = lake.apply({**wanted, "metadata": {"name": "followed", "annotations": annotations}})
    assert answer.status_code == 200, answer.text


def test_what_is_written_while_it_does_not_follow_is_not_replaced_when_it_follows_again(
    up: Any, tmp_path: Path
) -> None:
    publish(LiveLake(tmp_path), 1)
    lake = up(FOLLOWED)
    lake.until_ready("followed")
    assert lake.add("followed", "mine").status_code == 409
    for marker in (2, 3):
        _follow(lake, "Once")
        _follow(lake, "Latest")  # nobody has written to it
        publish(lake, marker)
        lake.refresh("d", str(marker))
        lake.until(lambda marker=marker: _built(lake) == marker, f"version {marker} is served")
    _follow(lake, "Once")
    assert lake.add("followed", "mine").status_code == 200
    _follow(lake, "Latest")
    publish(lake, 4)
    lake.refresh("d", "4")
    lake.until(lambda: lake.condition("vix", "followed", "UpToDate")[1] == "NotEmpty", "it is spared")
    assert _built(lake) == 3
    assert "mine" in lake.ids("followed")
    _follow(lake, "Latest", **{"lakehouse.agentview.dev/adopt": "true"})
    lake.until(lambda: _built(lake) == 4, "its items are given up")
    assert "mine" not in lake.ids("followed")


def _false(lake: LiveLake, condition: str) -> tuple[str, str, str] | None:
    found = lake.condition("vix", "followed", condition)
    return found if found[0] == "False" and found[1] not in ("Building", "BuildRequired") else None
