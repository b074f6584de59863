"""A process that looks after declared resources, in a simulated world: virtual time, one bucket, crashes at any call.

The engine, the control functions and the controller are the real ones; only reading files is a stand-in, which takes
rows from an object of the bucket and publishes them as Parquet.
"""

import asyncio
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lakehouse import settings
from lakehouse.catalog import Catalog
from lakehouse.core import manifest
from lakehouse.core.errors import Invalid, LakehouseError, NotFound
from lakehouse.core.manifest import Manifest, SourceEntry
from lakehouse.core.schema import Field, Schema
from lakehouse.embedded.controller import Embedded
from lakehouse.ingest.spec import IngestResult, IngestSpec, Source
from lakehouse.server.declared import Parts
from lakehouse.testing.world import Fault, Process, World

API = "lakehouse.agentview.dev/v1alpha1"
DIMENSION = 2
SCHEMA = Schema((Field("id", "VARCHAR"), Field("embedding", "FLOAT[]"), Field("version", "BIGINT")))
QUIET_S = 45.0
"""Longer than the longest wait between two steps of anything that is under way here, shorter than a resync."""
SETTLE_S_MAX = 7_200.0

SAME = {"Unchanged": "Refreshed"}
"""A refresh that was cut short after publishing is followed by one that finds nothing new."""

Row = tuple[str, Sequence[float]]


def document(kind: str, name: str, spec: Mapping[str, Any], **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": API, "kind": kind, "metadata": {"name": name, **metadata}, "spec": dict(spec)}


def index(name: str, **spec: Any) -> dict[str, Any]:
    return document("VectorIndex", name, {"dimension": DIMENSION, "distance": "euclidean", **spec})


def built(name: str, dataset: str, follow: str = "Latest", **spec: Any) -> dict[str, Any]:
    source = {"name": dataset, "idColumn": "id", "vectorColumn": "embedding", "metadataColumns": ["version"]}
    return index(name, source={"dataset": {**source, "follow": follow}}, **spec)


def dataset(name: str, **spec: Any) -> dict[str, Any]:
    return document("Dataset", name, {"sources": [{"uri": f"s3://raw/{name}"}], **spec})


async def put_rows(world: World, name: str, rows: Sequence[Row], version: int) -> None:
    """Change what the source of a dataset holds."""
    await world.bucket.put(f"raw/{name}", json.dumps([version, list(rows)]).encode())


async def ingest(
    spec: IngestSpec, catalog: Catalog, store: Any, runtime: Any, chosen: Any, progress: Any, **_: Any
) -> IngestResult:
    """As `lakehouse.ingest.run` for a source that is one object of JSON rows."""
    uri = spec.sources[0].uri
    try:
        data = await store.get(uri.removeprefix("s3://"))
    except NotFound as error:
        raise NotFound(f"no file matches. uri=`{uri}`") from error
    etag = hashlib.sha256(data).hexdigest()
    chain = await catalog.chain(spec.name)
    if chain.newest is not None and chain.newest.sources[0].etag == etag:
        return IngestResult(chain.newest, published=False, rejects=0)
    version, rows = json.loads(data)
    if version < 0:
        raise Invalid("the rows cannot be read")
    body = _parquet(rows, version)
    key = manifest.data_key(spec.name, manifest.attempt_name(runtime.now(), runtime.uuid().hex), 0)
    await store.put(key, body)
    new = Manifest(
        spec.name,
        chain.newest.dataset_id if chain.newest else runtime.uuid(),
        chain.last + 1,
        SCHEMA.fingerprint,
        ({"key": key, "size": len(body), "etag": "", "rows": len(rows), "source": uri},),
        len(rows),
        runtime.now().isoformat(),
        schema=SCHEMA,
        bytes=len(body),
        sources=(SourceEntry(uri, etag, len(data), len(rows), (key,)),),
        first_version=chain.newest.first_version if chain.newest else chain.last + 1,
    )
    await catalog.publish(new)
    return IngestResult(new, published=True, rejects=0)


def _parquet(rows: Sequence[Row], version: int) -> bytes:
    table = pa.table(
        {
            "id": pa.array([row[0] for row in rows], pa.string()),
            "embedding": pa.array([row[1] for row in rows], pa.list_(pa.float32())),
            "version": pa.array([version] * len(rows), pa.int64()),
        }
    )
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


class CountingWorld(World):
    """A world that counts the calls of its processes, and ends one at a call of its choice."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.calls = 0
        self.writes = 0
        self.crash_at: int | None = None
        self.crash_applies = False
        self.crashed = asyncio.Event()

    def fault(self, process: str, operation: str, key: str) -> Fault:
        self.calls += 1
        self.writes += operation in ("create", "put", "delete")
        if self.crash_at is not None and self.calls >= self.crash_at:
            self.crash_at = None
            self.processes[-1].crash()
            self.crashed.set()
            return Fault.LOST_ANSWER if self.crash_applies else Fault.LOST_REQUEST
        return super().fault(process, operation, key)


class Lake:
    """One life of the process."""

    def __init__(
        self, world: CountingWorld, scratch: Path, name: str, convert: Callable[..., Any] = ingest
    ) -> None:
        self.world = world
        self.process: Process = world.start(name)
        store, runtime = self.process.store, self.process.runtime
        self.indexes = self.process.indexes
        self.catalog = Catalog(store, runtime)
        parts = Parts(
            store,
            runtime,
            settings.load(None, data="memory:"),
            scratch,
            self.indexes,
            self.catalog,
        )
        self.embedded = Embedded(parts, convert=convert)

    async def start(self) -> "Lake":
        """Start inside the process, so that a crash ends it; a start that meets a fault is tried again."""
        while True:
            try:
                await self.process.run(self.embedded.start())
                return self
            except LakehouseError:
                await asyncio.sleep(1)

    async def apply(self, wanted: Mapping[str, Any]) -> str:
        name = str(wanted["metadata"]["name"])
        applied = await self.process.run(
            self.embedded.apply(str(wanted["kind"]), name, wanted, dry_run=False)
        )
        return applied.result

    async def publish(self, name: str) -> None:
        """Read a dataset's source into a new version, as a process does that declares nothing."""
        source = Source(f"s3://raw/{name}", None, {})
        await ingest(
            IngestSpec(name, (source,)), self.catalog, self.process.store, self.process.runtime, None, None
        )

    async def settle(self, quiet_s: float = QUIET_S) -> None:
        """Wait until nobody wrote anything for a while and nothing runs."""
        began = asyncio.get_running_loop().time()
        quiet_since, writes = began, self.world.writes
        while True:
            await asyncio.sleep(1)
            now = asyncio.get_running_loop().time()
            if self.world.writes != writes or self.embedded.progress():
                quiet_since, writes = now, self.world.writes
            if now - quiet_since >= quiet_s:
                return
            assert now - began < SETTLE_S_MAX, await self.summary()

    @property
    def failing(self) -> bool:
        """Whether anything is being tried again and again."""
        embedded = self.embedded
        return any(embedded.workshop.failures(key) for key in embedded.registry.all_keys())

    async def summary(self) -> dict[str, Any]:
        """What people see: conditions without times or texts, and what each index and dataset holds."""
        found: dict[str, Any] = {}
        for resource in await self.embedded.items(None):
            status = resource.get("status", {})
            found[f"{resource['kind']}/{resource['metadata']['name']}"] = {
                one["type"]: (one["status"], SAME.get(one["reason"], one["reason"]))
                for one in status.get("conditions", ())
            }
        for name in await self.indexes.names():
            found[name] = await self.contents(name)
        return found

    async def contents(self, name: str) -> dict[str, tuple[bytes, bytes]]:
        """Every item of an index."""
        life = await self.indexes.fresh(name)
        items: dict[str, tuple[bytes, bytes]] = {}
        async for batch, _ in life.chunks():
            for item_id, vector, metadata in zip(batch.ids, batch.vectors, batch.metadata, strict=True):
                items[item_id] = (np.asarray(vector, np.float32).tobytes(), metadata or b"")
        return items

    async def condition(self, kind: str, name: str, wanted: str) -> tuple[str, str]:
        resource = await self.embedded.item(kind, name)
        conditions = resource.get("status", {}).get("conditions", ())
        return next((one["status"], one["reason"]) for one in conditions if one["type"] == wanted)

    async def until(self, holds: Callable[[], Any]) -> None:
        """Wait, in virtual time, until something is so."""
        for _ in range(3_600):
            found = holds()
            if await found if asyncio.iscoroutine(found) else found:
                return
            await asyncio.sleep(1)
        raise AssertionError(await self.summary())
