"""Merging through the gateway, between indexes that are served by pods of their own and those of the pool."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import orjson
import pytest

from lakehouse.server.auth import new_key
from live_server import LiveServer
from minio_server import MinioServer
from pods.pods import DIMENSION, PEER_KEY, PodSet, pool

pytestmark = [pytest.mark.minio, pytest.mark.timeout(240), pytest.mark.xdist_group("merging")]
KEY, KEY_SHA256 = new_key()
KEYS = orjson.dumps([{"name": "tests", "right": "write", "sha256": KEY_SHA256}]).decode()


class Deployment:
    """`products` in two shards, `fresh` in one, a pool of two processes, and the gateway before them."""

    def __init__(self, minio: MinioServer, home: Path, stack: ExitStack) -> None:
        env = {"LAKEHOUSE_KEYS": KEYS}
        self.products = PodSet(minio, home, index="products", shards=2, replicas=1, net=71, env=env)
        self.fresh = PodSet(minio, home, index="fresh", shards=1, replicas=1, net=72, env=env)
        for pods in (self.products, self.fresh):
            stack.enter_context(pods)
            pods.create()
            pods.start()
        self.pool = stack.enter_context(pool(minio, home, replicas=1, net=73))
        self.table = home / "routes.json"
        self.write()
        urls = {
            f"LAKEHOUSE_{role}_URL": self.pool[0].url
            for role in ("STORAGE", "CATALOG", "INGEST", "QUERY", "VECTORS")
        }
        self.gateway = stack.enter_context(
            LiveServer(
                "memory:",
                home / "gateway.log",
                args=["--roles", "gateway"],
                env={**urls, **env, "LAKEHOUSE_ROUTES": str(self.table), "LAKEHOUSE_PEER_KEY": PEER_KEY},
            )
        ).start()

    def write(self, **read_only: bool) -> None:
        indexes = {
            pods.index: {
                "url": pods.all[0].url,
                "shard_url": pods.shard_url,
                "resource": f"VectorIndex/shop/{pods.index}",
                "ready": True,
                "read_only": read_only.get(pods.index, False),
                "follows": "catalog" if read_only.get(pods.index) else "",
            }
            for pods in (self.products, self.fresh)
        }
        new = self.table.with_suffix(".new")
        new.write_text(json.dumps({"version": 1, "indexes": indexes}))
        new.replace(self.table)


@pytest.fixture(scope="module")
def deployment(minio: MinioServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with ExitStack() as stack:
        yield Deployment(minio, tmp_path_factory.mktemp("merging"), stack)


@pytest.fixture
def client(deployment: Deployment) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {KEY}"}
    url = f"{deployment.gateway.url}/v1/vectors"
    with httpx.Client(base_url=url, timeout=60, headers=headers) as made:
        yield made


def add(client: httpx.Client, index: str, ids: list[str], value: float = 1.0) -> None:
    items = [
        {"id": one, "vector": [value, n + 1.0] + [1.0] * (DIMENSION - 2), "metadata": {"of": index}}
        for n, one in enumerate(ids)
    ]
    client.post(f"/index/{index}/add", json={"items": items}).raise_for_status()


def length(client: httpx.Client, index: str) -> int:
    found: int = client.get(f"/index/{index}").raise_for_status().json()["length"]
    return found


def test_a_declared_index_drains_into_another(client: httpx.Client) -> None:
    add(client, "products", ["a", "b"])
    add(client, "fresh", ["b", "c", "d"])
    asked = {"dest": "products", "clear_source": True}
    answer = client.post("/index/fresh/merge", json=asked)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "merged": 2,
        "skipped_already_present": 1,
        "failed": 0,
        "length_dest": 4,
        "length_source": 0,
    }
    assert answer.headers["lakehouse-position"]
    assert client.post("/index/fresh/merge", json=asked).json()["merged"] == 0
    assert [client.get(f"/index/products/items/{one}").json()["metadata"]["of"] for one in "bc"] == [
        "products",
        "fresh",
    ]


def test_the_pool_and_a_declared_index_merge_both_ways(client: httpx.Client) -> None:
    client.post("/index", json={"name": "loose", "dimension": DIMENSION}).raise_for_status()
    add(client, "loose", [f"l{n}" for n in range(20)])
    before = length(client, "products")
    assert client.post("/index/loose/merge", json={"dest": "products"}).json()["merged"] == 20
    assert length(client, "products") == before + 20
    back = client.post("/index/products/merge", json={"dest": "loose", "on_conflict": "replace"})
    assert back.json()["length_dest"] == before + 20, back.text


def test_a_merge_within_the_pool_stays_there(client: httpx.Client) -> None:
    for name in ("one", "two"):
        client.post("/index", json={"name": name, "dimension": DIMENSION}).raise_for_status()
    add(client, "one", ["x"])
    assert client.post("/index/one/merge", json={"dest": "two"}).json()["merged"] == 1


@pytest.mark.parametrize(
    ("source", "asked", "status"),
    [
        ("fresh", {"dest": "fresh"}, 400),
        ("fresh", {}, 400),
        ("fresh", {"dest": "products", "on_conflict": "fight"}, 400),
        ("nothing", {"dest": "products"}, 404),
        ("fresh", {"dest": "nothing"}, 404),
    ],
)
def test_what_cannot_be_merged_is_refused_as_ever(
    client: httpx.Client, source: str, asked: dict[str, object], status: int
) -> None:
    answer = client.post(f"/index/{source}/merge", json=asked)
    assert answer.status_code == status, answer.text


def test_what_only_a_dataset_may_change_takes_no_merge(deployment: Deployment, client: httpx.Client) -> None:
    deployment.write(products=True)
    try:
        for _ in range(200):
            answer = client.post("/index/fresh/merge", json={"dest": "products"})
            if answer.status_code != 200:
                break
        assert answer.status_code == 409, answer.text
        assert answer.json()["detail"] == (
            "the index is read-only: it follows dataset catalog, as VectorIndex/shop/products says. index=`products`"
        )
        clearing = client.post("/index/products/merge", json={"dest": "fresh", "clear_source": True})
        assert clearing.status_code == 409
        assert client.post("/index/products/merge", json={"dest": "fresh"}).status_code == 200
    finally:
        deployment.write()
