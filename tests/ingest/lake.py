"""A small lake for tests of ingest: a store, its catalog, a folder of sources, and one call that runs a spec."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from lakehouse import ingest, settings
from lakehouse.catalog import Catalog
from lakehouse.core.schema import SchemaPolicy
from lakehouse.ingest import IngestResult, IngestSpec, Mode, Progress, Source
from lakehouse.ingest.process import Converting, InlineConverting
from lakehouse.ingest.reading import Limits
from lakehouse.ingest.sources import OpenBucket
from lakehouse.runtime import SystemRuntime
from lakehouse.store.base import ObjectStore


@dataclass
class Lake:
    """Where a test ingests."""

    store: ObjectStore
    folder: Path
    runtime: SystemRuntime = field(default_factory=SystemRuntime)
    started: int = 0
    """Converters that were started: none by an ingest that has nothing to do."""
    told: list[Progress] = field(default_factory=list)
    open_bucket: OpenBucket | None = None

    def __post_init__(self) -> None:
        self.catalog = Catalog(self.store, self.runtime)
        self.sources = self.folder / "sources"
        self.scratch = self.folder / "scratch"
        self.sources.mkdir()
        self.scratch.mkdir()

    def write(self, name: str, content: str | bytes) -> str:
        """A source file; returns its path."""
        path = self.sources / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    async def ingest(
        self,
        *uris: str | Source,
        name: str = "d",
        policy: SchemaPolicy = SchemaPolicy.STRICT,
        mode: Mode = Mode.REPLACE,
        converting: Callable[[Limits], Converting] | None = None,
        format: ingest.Format | None = None,
        options: dict[str, Any] | None = None,
        **more: Any,
    ) -> IngestResult:
        """Run one ingest, by default in this process."""
        sources = tuple(
            uri if isinstance(uri, Source) else Source(uri, format, options or {}) for uri in uris
        )
        return await ingest.run(
            IngestSpec(name, sources, policy=policy, mode=mode, **more),
            self.catalog,
            self.store,
            self.runtime,
            settings.load(),
            self.told.append,
            scratch=self.scratch,
            converting=converting or self._inline,
            open_bucket=self.open_bucket,
        )

    def _inline(self, limits: Limits) -> Converting:
        self.started += 1
        return InlineConverting(limits, self.runtime)

    async def rows(self, name: str = "d", version: int | None = None) -> list[tuple[Any, ...]]:
        """All rows of a version, sorted; read from its objects as they are, so they must agree."""
        found = await self.catalog.manifest(name, version)
        assert found.schema is not None
        rows: list[tuple[Any, ...]] = []
        for number, key in enumerate(found.object_keys):
            path = self.folder / f"read-{number}.parquet"
            await self.store.download(key, path)
            read = duckdb.sql(f"SELECT * FROM read_parquet('{path}')")
            assert tuple(read.columns) == found.schema.names
            rows += read.fetchall()
            path.unlink()
        return sorted(rows, key=repr)

    async def keys(self, prefix: str = "_catalog/") -> Sequence[str]:
        return [info.key for info in await self.store.list(prefix)]

    def columns(self, result: IngestResult) -> list[str]:
        """`name TYPE` of each column."""
        assert result.schema is not None
        return [f"{each.name} {each.type}" for each in result.schema.fields]
