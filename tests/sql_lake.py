"""A SQL service with a few datasets and an index, on a loop of its own so that many tests share one start."""

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import uvloop

from lakehouse.catalog import Catalog
from lakehouse.core.manifest import Manifest, checked_registration
from lakehouse.core.schema import Field, Schema
from lakehouse.core.types import Distance, IndexParams, checked_batch
from lakehouse.indexes import Indexes
from lakehouse.runtime import SystemRuntime
from lakehouse.settings import Settings
from lakehouse.sql.execution import Execution, Query
from lakehouse.sql.formats import Format
from lakehouse.sql.service import SqlService
from lakehouse.sql.workers import Worker
from lakehouse.store.local import LocalStore
from lakehouse.vector_sql import IndexVectorSearch

T = TypeVar("T")
ROWS = 100
MEMORY_BYTES = 256 << 20
PACKAGES = Path(__file__).resolve().parents[1] / "examples" / "debian-packages.parquet"


@dataclass
class Watched:
    """What was seen of one worker's process, from outside."""

    pid: int
    taken_at: float
    size_at_start: int
    peak: int = 0
    gone_at: float | None = None
    limits: dict[str, str] = field(default_factory=dict)


class Lake:
    """`query` and friends for tests that are not coroutines."""

    def __init__(self, home: Path, **settings: Any) -> None:
        self.home = home
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, daemon=True)
        self._thread.start()
        self.workers: list[Watched] = []
        self.settings = Settings(
            **{"sql_memory_bytes_max": MEMORY_BYTES, "sql_timeout_s": 20.0, "sql_workers": 2, **settings}
        )
        self.call(self._start())

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(120)

    async def _start(self) -> None:
        self.runtime = SystemRuntime(2)
        self.store = LocalStore(self.home / "data", self.runtime)
        self.catalog = Catalog(self.store, self.runtime)
        self.indexes = Indexes(self.store, self.runtime)
        self.service = SqlService(
            self.catalog,
            self.store,
            self.runtime,
            self.settings,
            self.home / "scratch",
            IndexVectorSearch(self.indexes),
        )
        await self.service.start()
        await self.service.started()
        self._watch_workers()

    def _watch_workers(self) -> None:
        pool = self.service.pool
        take = pool._take

        async def watched() -> Worker:
            worker = await take()
            seen = Watched(worker.pid, time.monotonic(), _status(worker.pid, "VmSize"))
            self.workers.append(seen)
            threading.Thread(target=_follow, args=(seen,), daemon=True).start()
            return worker

        setattr(pool, "_take", watched)  # noqa: B010  mypy knows it as a method

    def close(self) -> None:
        self.call(self.service.close())
        self.call(self.indexes.close())
        self.call(self.store.close())
        self.runtime.close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    # --- data

    def dataset(self, name: str, *tables: pa.Table) -> None:
        """Register a new version made of these files."""
        self.call(self._dataset(name, tables))

    async def _dataset(self, name: str, tables: Sequence[pa.Table]) -> None:
        objects = []
        for table in tables:
            path = self.home / f"{self.runtime.uuid().hex}.parquet"
            pq.write_table(table, path, row_group_size=50)
            key = f"files/{path.name}"
            await self.store.upload(key, path)
            objects.append({"key": key, "size": path.stat().st_size})
            path.unlink()
        await self.catalog.register(checked_registration(name, "f", tuple(objects), None))

    def ingested(self, name: str, table: pa.Table, columns: Sequence[tuple[str, str]]) -> None:
        """Publish what ingest makes of one file: its columns with their types."""
        self.call(self._ingested(name, table, columns))

    async def _ingested(self, name: str, table: pa.Table, columns: Sequence[tuple[str, str]]) -> None:
        path = self.home / f"{self.runtime.uuid().hex}.parquet"
        pq.write_table(table, path, row_group_size=50)
        key, size = f"files/{path.name}", path.stat().st_size
        await self.store.upload(key, path)
        path.unlink()
        schema = Schema(tuple(Field(*column) for column in columns))
        objects = ({"key": key, "size": size},)
        made = Manifest(
            name,
            self.runtime.uuid(),
            1,
            schema.fingerprint,
            objects,
            len(table),
            "2026-01-01T00:00:00Z",
            schema,
        )
        await self.catalog.publish(made)

    def empty(self, name: str, *columns: tuple[str, str]) -> None:
        """Publish what ingest makes of a source without rows: columns and no file."""
        schema = Schema(tuple(Field(*column) for column in columns))
        version = Manifest(
            name, self.runtime.uuid(), 1, schema.fingerprint, (), 0, "2026-01-01T00:00:00Z", schema
        )
        self.call(self.catalog.publish(version))

    def index(self, name: str, ids: Sequence[str], vectors: np.ndarray[Any, Any]) -> None:
        self.call(self._index(name, ids, vectors))

    async def _index(self, name: str, ids: Sequence[str], vectors: np.ndarray[Any, Any]) -> None:
        params = IndexParams(name, vectors.shape[1], distance=Distance.EUCLIDEAN)
        collection = await self.indexes.create(params)
        metadata = [orjson.dumps({"n": j}) for j in range(len(ids))]
        await collection.add(checked_batch(ids, vectors, metadata, params))

    # --- queries

    def execute(self, sql: str, **options: Any) -> tuple[Execution, bytes]:
        """The execution and all bytes of its result.  Raises what ends it."""
        return self.call(self._execute(Query(sql, **options)))

    async def _execute(self, query: Query) -> tuple[Execution, bytes]:
        execution = await self.service.run(query)
        data = b"".join([chunk async for chunk in execution.chunks()])
        return execution, data

    def json(self, sql: str, **options: Any) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.execute(sql, **options)[1])
        return parsed

    def listed(self) -> list[str]:
        """Ids of the queries that the service tells of."""

        async def ids() -> list[str]:
            return [execution.id for execution in self.service.list()]

        return self.call(ids())

    def rows(self, sql: str, parameters: Any = None, **options: Any) -> list[list[Any]]:
        given = b"" if parameters is None else orjson.dumps(parameters)
        rows: list[list[Any]] = self.json(sql, parameters=given, format=Format.JSON, **options)["rows"]
        return rows

    def fingerprint(self) -> str:
        """Every byte of the store and of the files beside it that a query could reach."""
        digest = hashlib.sha256()
        for path in sorted((self.home / "data").rglob("*")):
            if path.is_file() and ".tmp" not in path.parts:
                digest.update(str(path).encode() + path.read_bytes())
        return digest.hexdigest()


def products(rows: int = ROWS, start: int = 0) -> pa.Table:
    """`id, name, price, day, embedding`; rows start … start + rows."""
    numbers = range(start, start + rows)
    return pa.table(
        {
            "id": [f"p{n}" for n in numbers],
            "name": [f"product {n}" for n in numbers],
            "price": pa.array([n * 1.5 for n in numbers], pa.float64()),
            "day": pa.array([18_000 + n for n in numbers], pa.int32()).cast(pa.date32()),
            "embedding": pa.array([[float(n), 1.0, 0.0] for n in numbers], pa.list_(pa.float32())),
        }
    )


def _has_files(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/fd").exists()
    except ProcessLookupError:  # it ended between the look-up of its folder and of what is in it
        return False


def _status(pid: int, name: str) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    line = next((line for line in text.splitlines() if line.startswith(name)), "")
    return int(line.split()[1]) << 10 if line else 0


def _limits(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    except OSError:
        return {}
    return {line[:26].strip(): line[26:47].strip() for line in lines}


def _follow(seen: Watched) -> None:
    while (peak := _status(seen.pid, "VmPeak")) or _has_files(seen.pid):
        seen.peak = max(seen.peak, peak)
        seen.limits = _limits(seen.pid) or seen.limits
        time.sleep(0.01)
    seen.gone_at = time.monotonic()
