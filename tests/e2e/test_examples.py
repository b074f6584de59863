"""examples/ on the cluster: the same resources, the same answers as the embedded mode gives."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from e2e.access import Body
from e2e.images import ROOT
from e2e.release import SMALL, Release
from e2e.waiting import until
from lakehouse.client import Client
from live_lake import LiveLake

EXAMPLES = ROOT / "examples"
FILES = ("debian-packages.parquet", "sections.csv")
QUERIES = ("git", "postgresql", "python3", "vim", "apache2")
STATEMENTS = (
    "SELECT count(*) AS n, sum(installed_size_kib) AS kib FROM packages",
    "SELECT s.title, count(*) AS n FROM packages p JOIN sections s USING (section) GROUP BY ALL ORDER BY n DESC, 1",
    """SELECT p.id, s.title FROM vector_search('packages', 'git', k := 6) v
    JOIN packages p USING (id) JOIN sections s USING (section) ORDER BY p.id""",
)


def resources(place: str) -> list[Body]:
    """examples/packages.yaml with its relative paths turned into URIs below `place`."""
    bodies: list[Body] = list(YAML(typ="safe").load_all((EXAMPLES / "packages.yaml").read_text()))
    for body in bodies:
        for source in body["spec"].get("sources", ()):
            source["uri"] = place + source["uri"]
    return bodies


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory, lakehouse: Release) -> Iterator[LiveLake]:
    """`lakehouse up -f examples/packages.yaml`, which works while the cluster does."""
    home: Path = tmp_path_factory.mktemp("embedded")
    text = (EXAMPLES / "packages.yaml").read_text()
    for name in FILES:
        (home / name).write_bytes((EXAMPLES / name).read_bytes())
    lake = LiveLake(home, [text]).start()
    yield lake
    lake.stop()


@pytest.fixture(scope="module")
def in_cluster(lakehouse: Release, lake: LiveLake) -> Iterator[Client]:
    """`kubectl apply -f examples/packages.yaml`, its files in the bucket."""
    cluster, namespace = lakehouse.cluster, lakehouse.namespace
    for name in FILES:
        lakehouse.store.client.upload_file(str(EXAMPLES / name), lakehouse.bucket, f"examples/{name}")
    bodies = resources(f"s3://{lakehouse.bucket}/examples/")
    for body in bodies:
        if body["kind"] == "VectorIndex":
            body["spec"]["pod"] = {"resources": SMALL}
    lakehouse.apply(*bodies)
    for name in ("packages", "sections"):
        cluster.wait_for_condition("Dataset", namespace, name, "Ready", seconds=180)
    for name in ("packages", "fresh"):
        lakehouse.ready(name, seconds=240)
    with lakehouse.client() as client:
        yield client
    for body in bodies:
        cluster.delete(body["kind"], namespace, body["metadata"]["name"])


@pytest.fixture(scope="module")
def embedded(lake: LiveLake) -> Iterator[Client]:
    """The embedded mode, when it is as far."""
    lake.until_ready("packages", "fresh")
    with Client(lake.server.url) as client:
        yield client


def test_the_same_items_and_neighbours(in_cluster: Client, embedded: Client) -> None:
    assert in_cluster.count("packages") == embedded.count("packages") > 5000
    for name in QUERIES:
        ours = in_cluster.search_like("packages", name, k=10, ef=400)
        theirs = embedded.search_like("packages", name, k=10, ef=400)
        assert [(hit.id, round(hit.distance, 5), hit.metadata) for hit in ours] == [
            (hit.id, round(hit.distance, 5), hit.metadata) for hit in theirs
        ]


@pytest.mark.parametrize("statement", STATEMENTS)
def test_the_same_rows(in_cluster: Client, embedded: Client, statement: str) -> None:
    assert in_cluster.sql(statement).rows() == embedded.sql(statement).rows()


def test_fresh_items_drain_into_the_main_index(lakehouse: Release, in_cluster: Client) -> None:
    table = pq.read_table(EXAMPLES / FILES[0]).slice(0, 500)
    vectors: Any = table["embedding"].to_pylist()
    ids = [f"new-{name}" for name in table["id"].to_pylist()]
    before = in_cluster.count("packages")
    in_cluster.add("fresh", ids, vectors)
    until(
        "the fresh tier to be drained",
        lambda: (in_cluster.count("fresh"), in_cluster.count("packages")),
        lambda counts: counts == (0, before + 500),
        seconds=120,
    )
    drained = until(
        "the status to say so",
        lambda: lakehouse.cluster.status("VectorIndex", lakehouse.namespace, "fresh").get("drain", {}),
        lambda drain: drain.get("lastMerged") == 500,
        seconds=30,
    )
    assert drained["lastTime"]
