"""`lakehouse work` as the operator's Jobs run it: a process per pod, a bucket of its own, an outcome in a file."""

import asyncio
import contextlib
import itertools
import json
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakehouse import lives
from lakehouse.catalog import Catalog
from lakehouse.control import kinds
from lakehouse.core.incarnation import Incarnation
from lakehouse.ingest.check import unchanged
from lakehouse.ingest.declared import spec_of
from lakehouse.runtime import SystemRuntime
from lakehouse.store.base import ObjectStore
from lakehouse.store.open import open_store
from live_server import LiveServer, command_line, environment, serving
from minio_server import MinioServer

pytestmark = pytest.mark.minio

DONE_S_MAX = 120.0
DIMENSION = 8
ROWS = 500
_numbers = itertools.count()


@dataclass
class Bucket:
    """A prefix of the session's MinIO, and work done on it."""

    minio: MinioServer
    prefix: str
    home: Path
    runtime: SystemRuntime = field(default_factory=SystemRuntime)

    @property
    def url(self) -> str:
        return f"s3://{self.minio.bucket}/{self.prefix}"

    @property
    def env(self) -> dict[str, str]:
        return {
            **self.minio.environment(),
            "LAKEHOUSE_DATA": self.url,
            "LAKEHOUSE_S3_ENDPOINT": self.minio.endpoint,
        }

    def store(self) -> ObjectStore:
        return asyncio.run(self._opened(self.url))

    async def _opened(self, url: str) -> ObjectStore:
        return await open_store(url, self.runtime, s3=self.minio.settings(), probed=False)

    async def opened(self, bucket: str) -> ObjectStore:
        """As ingests open the buckets of sources."""
        return await self._opened(f"s3://{bucket}")

    def start(self, task: Mapping[str, Any], index: int = 0) -> "Work":
        return Work(self, task, index)

    def done(self, task: Mapping[str, Any], index: int = 0) -> dict[str, Any]:
        """The result of a task that shall succeed."""
        ended = self.start(task, index).ended()
        assert ended["ok"], ended
        result: dict[str, Any] = ended["result"]
        return result

    def refused(self, task: Mapping[str, Any], index: int = 0) -> tuple[str, str]:
        """Reason and message of a task that shall fail."""
        ended = self.start(task, index).ended()
        assert not ended["ok"], ended
        return ended["reason"], ended["message"]

    def record(self, name: str) -> Incarnation | None:
        return asyncio.run(lives.current(self.store(), name))

    def put_table(self, key: str, table: pa.Table) -> None:
        path = self.home / f"{next(_numbers)}.parquet"
        pq.write_table(table, path)
        asyncio.run(self.store().upload(key, path))

    def serving(self, **env: str) -> LiveServer:
        return LiveServer(
            self.url,
            self.home / f"server-{next(_numbers)}.log",
            args=["--roles", "vectors,storage"],
            env={**self.env, **env},
        )


class Work:
    """One process that does one task."""

    def __init__(self, bucket: Bucket, task: Mapping[str, Any], index: int) -> None:
        number = next(_numbers)
        self.outcome = bucket.home / f"termination-{number}"
        self.log = bucket.home / f"work-{number}.log"
        env = {
            **bucket.env,
            "LAKEHOUSE_TASK": json.dumps(task),
            "JOB_COMPLETION_INDEX": str(index),
            "LAKEHOUSE_TERMINATION_LOG": str(self.outcome),
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command_line("work"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(env),
                cwd=bucket.home,
            )

    def ended(self) -> dict[str, Any]:
        """The outcome, which the exit status agrees with."""
        try:
            status = self.process.wait(DONE_S_MAX)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
        assert self.outcome.exists(), self.log.read_text()
        found: dict[str, Any] = json.loads(self.outcome.read_text())
        assert status == (0 if found["ok"] else 1), self.log.read_text()
        return found


@pytest.fixture
def bucket(minio: MinioServer, tmp_path: Path) -> Iterator[Bucket]:
    made = Bucket(minio, f"jobs-{uuid.uuid4().hex[:8]}", tmp_path)
    yield made
    made.runtime.close()


def products(rows: int = ROWS, seed: int = 1, **more: Any) -> pa.Table:
    vectors = np.random.default_rng(seed).standard_normal((rows, DIMENSION)).astype(np.float32)
    return pa.table(
        {
            "id": [f"p{n}" for n in range(rows)],
            "embedding": pa.array(list(vectors), pa.list_(pa.float32())),
            "price": list(range(rows)),
            **more,
        }
    )


def ingest(*uris: str, dataset: str = "products", **spec: Any) -> dict[str, Any]:
    return {"act": "Ingest", "dataset": dataset, "spec": {"sources": [{"uri": uri} for uri in uris], **spec}}


def build(life: uuid.UUID, **changes: Any) -> dict[str, Any]:
    return {
        "act": "Build",
        "params": params(),
        "shards": 2,
        "owner": "cluster/shop/products",
        "origin": {"dataset": "products", "version": 1},
        "replaces": False,
        "life": life.hex,
        "dataset": "products",
        "version": 1,
        "id_column": "id",
        "vector_column": "embedding",
        "metadata_columns": ["price"],
        "dataset_url": None,
        **changes,
    }


def params(name: str = "products", **changes: Any) -> dict[str, Any]:
    asked = {"dimension": DIMENSION, "m": 16, "ef_search": 64, "distance": "cosine", "ef_construction": 100}
    return {"name": name, **asked, **changes}


def restore(life: uuid.UUID, **changes: Any) -> dict[str, Any]:
    return {
        "act": "Restore",
        "params": params("again"),
        "shards": 1,
        "owner": "cluster/shop/again",
        "origin": {"snapshot": "s1"},
        "life": life.hex,
        "files": None,
        "uri": None,
        **changes,
    }


# ---------------------------------------------------------------- datasets


def test_a_path_in_a_cluster_is_a_key_of_the_datasets_own_bucket(bucket: Bucket) -> None:
    asyncio.run(bucket.store().put("files/a.csv", b"id,price\na,1\nb,2\n"))
    assert bucket.done(ingest("./files/a.csv")) == {"result": "Published", "version": 1, "rejected": 0}
    assert bucket.done(ingest("files/*.csv")) == {"result": "Unchanged", "version": 1, "rejected": 0}
    assert bucket.done(ingest(f"{bucket.url}/files/a.csv"))["result"] == "Unchanged"
    asyncio.run(bucket.store().put("files/b.csv", b"id,price\nc,3\nd,4,surplus\n"))
    rejecting = ingest("files/*.csv", rejects={"max": 5})
    assert bucket.done(rejecting) == {"result": "Published", "version": 2, "rejected": 1}


@pytest.mark.parametrize("uri", ["/etc/passwd", "file:///etc/passwd", "../secret.csv", "~/x.csv", "a//b.csv"])
def test_a_file_of_no_machine_is_refused(bucket: Bucket, uri: str) -> None:
    reason, message = bucket.refused(ingest(uri))
    assert reason == "Invalid"
    assert uri in message


def test_what_is_wrong_with_sources_or_task_is_the_outcome(bucket: Bucket) -> None:
    assert bucket.refused(ingest("absent.csv"))[0] == "NotFound"
    assert bucket.refused({"act": "Dance"})[0] == "Invalid"
    assert bucket.refused(restore(uuid.uuid4()))[0] == "Invalid"
    asyncio.run(bucket.store().put("a.csv", b"id,price\na,1\n"))
    bucket.done(ingest("a.csv"))
    asyncio.run(bucket.store().put("a.csv", b"id,other\na,1\n"))
    reason, message = bucket.refused(ingest("a.csv", schema={"policy": "Strict"}))
    assert reason == "SchemaConflict"
    assert "price" in message


async def test_unchanged_says_what_an_ingest_would_find(bucket: Bucket) -> None:
    store = await bucket.opened(f"{bucket.minio.bucket}/{bucket.prefix}")
    catalog = Catalog(store, bucket.runtime)
    spec = kinds.dataset({"sources": [{"uri": "x/*.csv"}]})

    async def version() -> int | None:
        wanted = spec_of("products", spec, store.url)
        found = await unchanged(wanted, catalog, bucket.runtime, bucket.opened)
        return None if found is None else found.version

    await store.put("x/a.csv", b"id,price\na,1\n")
    assert await version() is None
    await asyncio.to_thread(bucket.done, ingest("x/*.csv"))
    assert await version() == 1
    await store.put("x/a.csv", b"id,price\na,2\n")
    assert await version() is None
    await asyncio.to_thread(bucket.done, ingest("x/*.csv"))
    assert await version() == 2
    await store.put("x/b.csv", b"id,price\nb,2\n")
    assert await version() is None
    spec = kinds.dataset({"sources": [{"uri": "x/a.csv", "options": {"delimiter": ";"}}]})
    assert await version() is None


def test_a_stopped_ingest_says_so_and_publishes_nothing(bucket: Bucket) -> None:
    lines = b"".join(b"%d,%d,some text that takes a while to read\n" % (n, n) for n in range(1_500_000))
    asyncio.run(bucket.store().put("large.csv", b"id,price,text\n" + lines))
    work = bucket.start(ingest("large.csv"))
    deadline = time.monotonic() + DONE_S_MAX
    while not _is_converting(work):
        assert work.process.poll() is None, work.log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    work.process.send_signal(signal.SIGTERM)
    ended = work.ended()
    assert (ended["ok"], ended["reason"]) == (False, "Stopped"), work.log.read_text()
    assert asyncio.run(bucket.store().list("_catalog/")) == []


def _is_converting(work: Work) -> bool:
    """Whether the process has started the one that converts."""
    tasks = Path(f"/proc/{work.process.pid}/task")
    with contextlib.suppress(FileNotFoundError):  # a thread that has ended
        return any((task / "children").read_text().strip() for task in tasks.iterdir())
    return False


# ---------------------------------------------------------------- indexes


def searched(server: LiveServer, name: str, vector: list[float], k: int = 5) -> list[str]:
    answer = httpx.post(
        f"{server.url}/v1/vectors/index/{name}/search", json={"vector": vector, "k": k}, timeout=60
    )
    assert answer.status_code == 200, answer.text
    return [hit["id"] for hit in answer.json()["results"]]


def test_a_process_per_shard_builds_an_index_and_the_last_begins_it(bucket: Bucket) -> None:
    bucket.put_table("products.parquet", products())
    bucket.done(ingest("products.parquet"))
    task = build(uuid.uuid4())
    works = [bucket.start(task, shard) for shard in range(2)]
    results = [work.ended() for work in works]
    assert all(result["ok"] for result in results), results
    assert any(result["result"]["published"] for result in results)
    record = bucket.record("products")
    assert record is not None
    assert (record.alive, record.shards, record.owner) == (True, 2, "cluster/shop/products")
    assert record.origin == {"dataset": "products", "version": 1}
    assert bucket.done(task, 0)["published"]  # again, harmless
    assert bucket.record("products") == record
    with bucket.serving() as server:
        server.start()
        described = httpx.get(f"{server.url}/v1/vectors/index/products", timeout=60).json()
        assert described["length"] == ROWS
        vectors = products()["embedding"].to_pylist()
        for n in (0, 123, ROWS - 1):
            assert searched(server, "products", vectors[n])[0] == f"p{n}"
        item = httpx.get(f"{server.url}/v1/vectors/index/products/items/p7", timeout=60).json()
        assert item["metadata"] == {"price": 7}


def test_half_a_build_is_no_index_and_another_attempt_completes_it(bucket: Bucket) -> None:
    bucket.put_table("products.parquet", products())
    bucket.done(ingest("products.parquet"))
    task = build(uuid.uuid4())
    assert bucket.done(task, 1) == {"shard": 1, "published": False}
    assert bucket.record("products") is None
    assert bucket.done(task, 1) == {"shard": 1, "published": False}
    assert bucket.done(task, 0) == {"shard": 0, "published": True}
    assert bucket.refused(task, 2)[0] == "Invalid"
    other = build(uuid.uuid4())
    assert bucket.refused(other, 0)[0] == "Conflict"  # at once, not after the work


def test_a_build_replaces_what_lives_and_keeps_it_until_then(bucket: Bucket) -> None:
    bucket.put_table("products.parquet", products())
    bucket.done(ingest("products.parquet"))
    first = build(uuid.uuid4(), shards=1)
    bucket.done(first)
    with bucket.serving() as server:
        server.start()
        assert searched(server, "products", [1.0] * DIMENSION)
        bucket.put_table("products.parquet", products(ROWS + 20, seed=2))
        assert bucket.done(ingest("products.parquet"))["version"] == 2
        origin = {"dataset": "products", "version": 2}
        bucket.done(build(uuid.uuid4(), shards=1, version=2, origin=origin, replaces=True))
        assert searched(server, "products", [1.0] * DIMENSION)
        record = bucket.record("products")
        assert record is not None
        assert record.origin == origin
    with bucket.serving() as server:
        server.start()
        assert httpx.get(f"{server.url}/v1/vectors/index/products", timeout=60).json()["length"] == ROWS + 20


def index_of(server: LiveServer) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.url}/v1/vectors/index/products", timeout=60).json()
    return found


def add(server: LiveServer, item_id: str) -> int:
    """The status that a write is answered."""
    items = [{"id": item_id, "vector": [1.0] * DIMENSION}]
    url = f"{server.url}/v1/vectors/index/products/add"
    return httpx.post(url, json={"items": items}, timeout=60).status_code


def renewed(server: LiveServer) -> None:
    answer = httpx.post(f"{server.url}/internal/indexes/products/renew", timeout=60)
    assert answer.status_code == 200, answer.text


def test_an_empty_index_loses_no_write_that_is_acknowledged_while_it_is_built(bucket: Bucket) -> None:
    rows = 20_000
    bucket.put_table("products.parquet", products(rows))
    bucket.done(ingest("products.parquet"))
    origin = {"dataset": "products", "version": 1, "follow": "Once"}
    with bucket.serving() as server:
        server.start()
        created = httpx.post(
            f"{server.url}/v1/vectors/index", json={"name": "products", "dimension": DIMENSION}, timeout=60
        )
        assert created.status_code == 201, created.text
        task = build(uuid.uuid4(), shards=1, replaces=True, origin=origin)
        work = bucket.start(task)
        while not any(key.endswith(f"{task['life']}/continues") for key in _keys(bucket)):
            assert work.process.poll() is None, work.log.read_text()
            time.sleep(0.02)
        written = 0
        while work.process.poll() is None:
            assert add(server, f"mine-{written}") == 200
            written += 1
            time.sleep(0.05)
        assert work.ended()["ok"], work.log.read_text()
        assert written
        renewed(server)
        assert index_of(server)["length"] == rows + written
        for n in (0, written - 1):
            item = httpx.get(f"{server.url}/v1/vectors/index/products/items/mine-{n}", timeout=60)
            assert item.status_code == 200, item.text


def _keys(bucket: Bucket) -> list[str]:
    return [info.key for info in asyncio.run(bucket.store().list("_vectors/products/"))]


def test_an_index_that_writers_were_let_near_is_not_replaced_unless_that_is_asked_for(bucket: Bucket) -> None:
    bucket.put_table("products.parquet", products())
    bucket.done(ingest("products.parquet"))
    bucket.done(build(uuid.uuid4(), shards=1))
    again = {"shards": 1, "replaces": True}
    with bucket.serving() as server:
        server.start()
        bucket.done(build(uuid.uuid4(), **again))
        renewed(server)
        assert add(server, "mine") == 200
        record = bucket.record("products")
        assert record is not None
        assert record.origin == {"dataset": "products", "version": 1, "follow": "Once"}
        reason, message = bucket.refused(build(uuid.uuid4(), **again))
        assert (reason, "writers" in message) == ("Conflict", True)
        renewed(server)
        assert index_of(server)["length"] == ROWS + 1
        bucket.done(build(uuid.uuid4(), **again, adopts=True))
        renewed(server)
        assert index_of(server)["length"] == ROWS


def test_a_row_that_is_no_item_is_named_and_nothing_can_be_seen(bucket: Bucket) -> None:
    table = products(4)
    vectors = table["embedding"].to_pylist()
    vectors[2] = [0.0] * DIMENSION
    bucket.put_table(
        "bad.parquet", table.set_column(1, "embedding", pa.array(vectors, pa.list_(pa.float32())))
    )
    bucket.done(ingest("bad.parquet"))
    reasons = [bucket.start(build(uuid.uuid4(), shards=1)).ended()]
    assert reasons[0]["reason"] == "Invalid", reasons
    assert "p2" in reasons[0]["message"]
    assert bucket.refused(build(uuid.uuid4(), version=9))[0] == "NotFound"
    assert bucket.record("products") is None


def test_a_dataset_may_lie_in_another_prefix(bucket: Bucket, minio: MinioServer, tmp_path: Path) -> None:
    bucket.put_table("products.parquet", products())
    bucket.done(ingest("products.parquet"))
    other = Bucket(minio, f"{bucket.prefix}-other", tmp_path)
    assert other.done(build(uuid.uuid4(), shards=1, dataset_url=bucket.url))["published"]
    assert other.record("products") is not None
    assert bucket.record("products") is None
    other.runtime.close()


def test_an_index_is_restored_from_a_named_snapshot_over_other_shards(bucket: Bucket) -> None:
    bucket.put_table("products.parquet", products())
    bucket.done(ingest("products.parquet"))
    task = build(uuid.uuid4())
    for shard in range(2):
        bucket.done(task, shard)
    with bucket.serving() as server:
        server.start()
        taken = httpx.post(
            f"{server.url}/v1/vectors/index/products/snapshot", json={"name": "s1"}, timeout=60
        )
        assert taken.status_code < 300, taken.text
    store = bucket.store()
    keys = [info.key for info in asyncio.run(store.list("_vectors/products/"))]
    (named,) = [key for key in keys if key.endswith("/named/s1.json")]
    life = uuid.uuid4()
    by_uri = restore(life, uri=f"{bucket.url}/{named}", shards=3)
    assert bucket.done(by_uri) == {"items": ROWS}
    assert bucket.done(by_uri) == {}  # again, harmless
    record = bucket.record("again")
    assert record is not None
    assert (record.uuid, record.shards, record.owner) == (life, 3, "cluster/shop/again")
    files = [one["key"] for one in json.loads(asyncio.run(store.get(named)))["files"]]
    assert bucket.done(restore(uuid.uuid4(), params=params("third"), files=files, shards=2)) == {
        "items": ROWS
    }
    assert bucket.refused(restore(uuid.uuid4(), params=params("third"), files=files))[0] == "Conflict"
    wrong = restore(uuid.uuid4(), params=params("fourth", dimension=3), files=files)
    assert bucket.refused(wrong)[0] == "Invalid"
    with bucket.serving() as server:
        server.start()
        vectors = products()["embedding"].to_pylist()
        for name in ("again", "third"):
            assert searched(server, name, vectors[42])[0] == "p42"


def test_a_snapshot_of_another_prefix_is_brought_here(
    bucket: Bucket, minio: MinioServer, tmp_path: Path
) -> None:
    bucket.put_table("products.parquet", products(50))
    bucket.done(ingest("products.parquet"))
    bucket.done(build(uuid.uuid4(), shards=1))
    other = Bucket(minio, f"{bucket.prefix}-other", tmp_path)
    copy = f"{bucket.url}/_vectors/products.lhv1"
    assert other.done(restore(uuid.uuid4(), uri=copy)) == {"items": 50}
    assert (
        other.refused(restore(uuid.uuid4(), params=params("x"), uri=f"{bucket.url}/absent.lhv1"))[0]
        == "NotFound"
    )
    assert other.refused(restore(uuid.uuid4(), params=params("x"), uri="/etc/passwd"))[0] == "Invalid"
    asyncio.run(other.store().put("damaged.lhv1", b"LHV1 not really"))
    assert other.refused(restore(uuid.uuid4(), params=params("x"), uri="damaged.lhv1"))[0] == "Corrupt"
    other.runtime.close()


def test_a_rebuild_loses_no_write_that_arrives_meanwhile(bucket: Bucket) -> None:
    bucket.put_table("products.parquet", products())
    bucket.done(ingest("products.parquet"))
    bucket.done(build(uuid.uuid4(), shards=1))
    with bucket.serving() as server:
        server.start()
        url = f"{server.url}/v1/vectors/index/products"
        task = {"act": "Rebuild", "params": params(m=32), "index": "products", "life": uuid.uuid4().hex}
        work = bucket.start(task)
        written = 0
        while work.process.poll() is None:
            items = [{"id": f"new{written}", "vector": [float(written + 1)] * DIMENSION}]
            answer = httpx.post(f"{url}/add", json={"items": items}, timeout=60)
            assert answer.status_code == 200, answer.text
            written += 1
        assert work.ended()["ok"], work.log.read_text()
        renewed = httpx.post(f"{server.url}/internal/indexes/products/renew", timeout=60)
        assert renewed.status_code == 200, renewed.text
        described = httpx.get(url, timeout=60).json()
        assert (described["length"], described["params"]["m"]) == (ROWS + written, 32)
        assert bucket.done(task) == {}  # again, harmless
    record = bucket.record("products")
    assert record is not None
    assert record.owner == "cluster/shop/products"


def test_a_directory_serves_as_a_store_too(tmp_path: Path) -> None:
    """Where no cluster is, paths stay paths."""
    (tmp_path / "a.csv").write_bytes(b"id,price\na,1\n")
    env = environment(
        {
            "LAKEHOUSE_DATA": str(tmp_path / "data"),
            "LAKEHOUSE_TASK": json.dumps(ingest(str(tmp_path / "a.csv"))),
            "LAKEHOUSE_TERMINATION_LOG": str(tmp_path / "outcome"),
        }
    )
    subprocess.run(command_line("work"), env=env, check=True, cwd=tmp_path, capture_output=True)
    assert json.loads((tmp_path / "outcome").read_text())["result"]["version"] == 1
    with serving(str(tmp_path / "data"), tmp_path / "log", args=["--roles", "catalog"]) as server:
        assert httpx.get(f"{server.url}/catalog/manifest/products", timeout=60).json()["row_count"] == 1
