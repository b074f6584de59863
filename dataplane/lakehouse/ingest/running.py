"""One ingest from sources to a published version: find, infer, decide, convert, upload, publish.

Until the manifest is created nothing is visible, and it is created last; an ingest that dies leaves objects
that no manifest names, which a later one collects.  A version that someone else published meanwhile is found by
the create, and everything is decided again on top of it.  What this module does not do: convert (a child
process does) or decide what a version holds (`lakehouse.ingest.ledger` does).
"""

import asyncio
import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq

from lakehouse.catalog import Catalog, Chain
from lakehouse.core import manifest, schema
from lakehouse.core.errors import Conflict, Invalid, LakehouseError, NotFound, Outcome, Unavailable
from lakehouse.core.manifest import Manifest, Rejects, SourceEntry
from lakehouse.core.schema import Schema
from lakehouse.ingest import check, ledger, sources
from lakehouse.ingest.formats import checked_options
from lakehouse.ingest.job import (
    Answer,
    Columns,
    Convert,
    Converted,
    Describe,
    Described,
    File,
    Gather,
    Infer,
    Inferred,
    Retype,
    Rewrite,
    Task,
    Transform,
    columns_of,
    schema_of,
)
from lakehouse.ingest.ledger import Plan, Written
from lakehouse.ingest.process import Converting, ProcessConverting
from lakehouse.ingest.reading import Limits
from lakehouse.ingest.sources import Found
from lakehouse.ingest.spec import IngestResult, IngestSpec, Mode, Progress, Reject, Step
from lakehouse.runtime import Runtime
from lakehouse.settings import Settings
from lakehouse.store.base import ObjectStore
from lakehouse.store.open import open_store

logger = logging.getLogger(__name__)

RACES_MAX = 8
"""Versions that others publish under an append before it gives up."""
REJECTS_MAX = 1_000_000
"""Rejected rows of one file that are kept; with more, its format or options are wrong."""
REJECTS_SHOWN = 10
RETYPES_MAX = 3
"""Times that one file's types are decided again; each only widens integers."""
KEPT_BYTES_MAX = 2 << 30
"""Downloaded sources that are kept between inferring and converting; others are fetched again."""
INGEST_S_MAX = 20 * 3_600.0
"""An ingest that runs longer is ended: after a day its objects would count as orphans."""

T = TypeVar("T")
Tell = Callable[[Progress], None]


async def run(
    spec: IngestSpec,
    catalog: Catalog,
    store: ObjectStore,
    runtime: Runtime,
    settings: Settings,
    progress: Tell = lambda _: None,
    *,
    scratch: Path | None = None,
    converting: Callable[[Limits], Converting] = ProcessConverting,
    open_bucket: sources.OpenBucket | None = None,
    deadline_s: float = INGEST_S_MAX,
) -> IngestResult:
    """Bring the dataset to what `spec` says; when it is that already, start nothing and publish nothing.

    Raises `NotFound` (a source that is not there), `Invalid` (one that cannot be read, every row rejected, over
    `max_rejects`), `SchemaConflict`, `Conflict` (another ingest published meanwhile), `Unavailable` (the store, the
    deadline, the converting process).  Whatever it raises, the version before is what is served.
    """
    opener = open_bucket or _buckets(runtime, settings)
    progress(Progress(Step.RESOLVING))
    look = await check.look(spec, catalog, runtime, opener)
    if look.current is not None:
        return IngestResult(look.current, published=False, rejects=0)
    async with _folder(scratch or settings.scratch_dir, runtime) as folder:
        limits = Limits(settings.ingest_memory_bytes_max, _cores(), folder / "spill")
        converter = converting(limits)
        running = _Ingest(spec, catalog, store, runtime, opener, converter, folder, progress)
        try:
            async with asyncio.timeout(min(deadline_s, INGEST_S_MAX)):
                return await running.published(look.found, look.chain, look.plan)
        except TimeoutError as error:
            raise Unavailable(
                f"the ingest took longer than it may. name=`{spec.name}` deadline_s=`{deadline_s:g}`",
                outcome=Outcome.NOT_COMMITTED,
            ) from error
        finally:
            await converter.close()
            await running.cleaned()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.asynccontextmanager
async def _folder(parent: Path | None, runtime: Runtime) -> AsyncIterator[Path]:
    """A scratch directory of this ingest alone."""
    name = await runtime.run_io(tempfile.mkdtemp, None, "ingest-", parent)
    try:
        yield Path(name)
    finally:
        await runtime.run_io(shutil.rmtree, name, ignore_errors=True)


def _buckets(runtime: Runtime, settings: Settings) -> sources.OpenBucket:
    async def opened(bucket: str) -> ObjectStore:
        from lakehouse.store.s3 import S3Settings  # a third of a second that local sources need not pay

        s3 = S3Settings.of(settings)
        return await open_store(f"{sources.S3}{bucket}", runtime, s3=s3, probed=False)

    return opened


@dataclass(frozen=True, slots=True)
class _Made:
    """One converted unit: its task's answer beside what lies in the bucket."""

    written: Written
    rejects: int
    rejects_path: str | None
    sample: Sequence[Mapping[str, Any]]


class _Ingest:
    """One run; what it has inferred and converted outlives a lost race for the version."""

    def __init__(
        self,
        spec: IngestSpec,
        catalog: Catalog,
        store: ObjectStore,
        runtime: Runtime,
        open_bucket: sources.OpenBucket,
        converter: Converting,
        folder: Path,
        progress: Tell,
    ) -> None:
        self._spec = spec
        self._catalog = catalog
        self._store = store
        self._runtime = runtime
        self._buckets: dict[str, ObjectStore] = {}
        self._open_bucket = open_bucket
        self._converter = converter
        self._folder = folder
        self._tell = progress
        self._attempt = manifest.attempt_name(runtime.now(), runtime.uuid().hex)
        self._inferred: dict[str, Inferred] = {}
        self._made: dict[tuple[str, ...], _Made] = {}
        self._downloaded: dict[str, Path] = {}
        self._uploaded: set[str] = set()
        self._named: frozenset[str] = frozenset()
        self._numbers = iter(range(1 << 62))
        self._objects = iter(range(1 << 62))
        self._progress = Progress(Step.RESOLVING)

    # --- the whole

    async def published(self, found: Sequence[Found], chain: Chain, plan: Plan) -> IngestResult:
        """Decide, convert and publish; again on a newer version when another one came between."""
        for _ in range(RACES_MAX):
            if plan.is_unchanged and chain.newest is not None:
                return IngestResult(chain.newest, published=False, rejects=0)
            new, rejects, rejected = await self._next(chain, plan)
            if self._spec.dry_run:
                return self._result(new, chain, rejects, rejected, published=False)
            try:
                self._step(Step.PUBLISHING)
                await self._catalog.publish(new)
            except Conflict as error:
                if self._spec.mode is Mode.REPLACE:
                    raise Conflict(
                        "another version was published while this one was made: run the ingest again. "
                        f"name=`{new.name}` version=`{new.version}`"
                    ) from error
                chain = await self._catalog.chain(self._spec.name)
                plan = ledger.plan(chain.newest, self._spec, found)
                continue
            self._named = new.own_keys
            await self._collect()
            return self._result(new, chain, rejects, rejected, published=True)
        raise Conflict(f"too many ingests of one dataset at once: run it again. name=`{self._spec.name}`")

    async def _next(self, chain: Chain, plan: Plan) -> tuple[Manifest, int, Sequence[Reject]]:
        """The next version's manifest, its objects uploaded; and what was rejected on the way."""
        base = chain.newest.schema if chain.newest is not None else None
        files = [each for unit in plan.units for each in unit]
        self._progress = replace(
            self._progress, bytes_total=sum(each.size for each in files), files_total=len(files)
        )
        await self._infer(files, base)
        made, final = await self._converted(plan, base)
        standing, loose = ledger.stand(chain.newest, base, plan) if chain.newest and base else ([], [])
        if loose and base != final:
            raise Conflict(
                "objects that were registered cannot be brought into another schema: replace the dataset. "
                f"name=`{self._spec.name}`"
            )
        written = [await self._fitting(unit, final) for unit in (*standing, *(each.written for each in made))]
        rejects, rejected = await self._rejects(chain.newest, plan.kept, made)
        new = ledger.manifest(
            self._spec,
            chain.last + 1,
            chain.newest,
            final,
            written,
            loose,
            rejects,
            dataset_id=self._runtime.uuid(),
            created_at=self._runtime.now().isoformat(),
        )
        return new, sum(each.rejects for each in made), rejected

    def _result(
        self, new: Manifest, chain: Chain, rejects: int, rejected: Sequence[Reject], *, published: bool
    ) -> IngestResult:
        old = chain.newest.schema if chain.newest is not None else None
        changes = schema.difference(old, new.schema) if old is not None and new.schema is not None else ()
        sample = next((each.sample for each in self._made.values() if each.sample), ())
        return IngestResult(
            new,
            published,
            rejects,
            rejected,
            changes,
            files_read=len(self._inferred),
            sample=sample if self._spec.dry_run else (),
        )

    async def _collect(self) -> None:
        """Orphans cost room, not truth: failing to collect them fails nothing."""
        try:
            count = await self._catalog.collect_orphans(self._spec.name)
        except LakehouseError as error:
            logger.warning("orphans not collected. dataset=%s error=%s", self._spec.name, error)
            return
        if count:
            logger.info("orphans collected. dataset=%s objects=%d", self._spec.name, count)

    async def cleaned(self) -> None:
        """Delete what was uploaded and is not named by the version that was published."""
        for store in self._buckets.values():
            await store.close()
        for key in sorted(self._uploaded - self._named):
            with contextlib.suppress(LakehouseError):  # a later ingest collects it
                await self._store.delete(key)

    # --- inferring

    async def _infer(self, files: Sequence[Found], base: Schema | None) -> None:
        """Every file's columns, before any is converted: so all are written in one schema."""
        wanted = columns_of(base) if base is not None and self._spec.transform is None else None
        for each in files:
            if each.uri in self._inferred:
                continue
            self._step(Step.INFERRING, source=each.uri)
            async with self._at_hand(each) as file:
                self._inferred[each.uri] = await self._do(Infer(file, wanted), Inferred)

    @contextlib.asynccontextmanager
    async def _at_hand(self, found: Found) -> AsyncIterator[File]:
        """The source as a local file; one in a bucket is fetched, and kept while there is room."""
        path = self._downloaded.pop(found.uri, None) or await self._brought(found)
        options = checked_options(found.source.options)
        yield File(found.uri, str(path), found.source.content_type, found.source.format, options)
        await self._runtime.run_io(sources.check_unchanged, found)
        if found.path is not None:
            await self._runtime.run_io(path.unlink)
        else:
            kept = sum(each.stat().st_size for each in self._downloaded.values())
            if found.uri not in self._inferred or kept + found.size > KEPT_BYTES_MAX:
                await self._runtime.run_io(path.unlink)
            else:
                self._downloaded[found.uri] = path

    async def _brought(self, found: Found) -> Path:
        """The source under a name in scratch; of a local file a link.

        DuckDB takes `*` and `[` in a path for a pattern and `year=2020` for a column; and what has to lie beside the
        file, such as one without its compression, does not belong in its folder.
        """
        if found.path is None:
            return await self._download(found)
        path = self._new_path("source")
        await self._runtime.run_io(path.symlink_to, found.path)
        return path

    async def _download(self, found: Found) -> Path:
        assert found.bucket is not None
        assert found.key is not None
        self._step(Step.DOWNLOADING, source=found.uri)
        if found.bucket not in self._buckets:
            self._buckets[found.bucket] = await self._open_bucket(found.bucket)
        path = self._new_path("source")
        try:
            info = await self._buckets[found.bucket].download(found.key, path)
        except NotFound as error:
            raise sources.changed(found) from error
        if (info.etag, info.size) != (found.etag, found.size):
            raise sources.changed(found)
        return path

    # --- converting

    async def _converted(self, plan: Plan, base: Schema | None) -> tuple[Sequence[_Made], Schema]:
        """All units, and the schema of the next version; decided again when a file turned out otherwise."""
        for _ in range(RETYPES_MAX * max(1, len(self._inferred))):
            own = await self._own(plan)
            final = ledger.decided(base, plan.kept, own, self._spec)
            retyped = False
            for unit in plan.units:
                name = tuple(each.uri for each in unit)
                if name not in self._made:
                    made = await self._unit(unit, final)
                    if made is None:
                        retyped = True
                        break
                    self._made[name] = made
                    self._check_rejects()
            if not retyped:
                made_here = [self._made[tuple(each.uri for each in unit)] for unit in plan.units]
                _check_some_rows(made_here, await self._first_rejects(made_here))
                return made_here, final
        raise Invalid(f"the types of the sources cannot be settled. name=`{self._spec.name}`")

    async def _own(self, plan: Plan) -> dict[str, Schema]:
        """What each source holds, or what the transform makes of all of them."""
        own = {each.uri: self._inferred[each.uri].schema for unit in plan.units for each in unit}
        if self._spec.transform is None or not own:
            return own
        source = self._source_columns(own)
        if not source:
            return {}
        described = await self._do(Describe(self._spec.transform, source), Described)
        return {"transform": schema.checked(schema_of(described.columns))}

    def _source_columns(self, own: Mapping[str, Schema]) -> Columns:
        """The table `source` of a transform: every column of every new file."""
        whole = schema.united([each for each in own.values() if each.fields])
        return tuple((name, "VARCHAR" if type_ == '"NULL"' else type_) for name, type_ in columns_of(whole))

    async def _unit(self, unit: Sequence[Found], final: Schema) -> _Made | None:
        """Convert and upload; None when a file's types have to be decided again."""
        if self._spec.transform is None:
            done = await self._file(unit[0], columns_of(final))
            return None if done is None else await self._stored(unit, [done], done, final)
        target = self._source_columns({uri: inferred.schema for uri, inferred in self._inferred.items()})
        parts: list[Converted] = []
        for each in unit:
            one = await self._file(each, target)
            if one is None:
                return None
            parts.append(one)
        if not target:
            return await self._stored(unit, parts, Converted((), 0, {}), final)
        paths = tuple(part.path for one in parts for part in one.parts)
        task = Transform(self._spec.transform, paths, target, columns_of(final), str(self._new_path("out")))
        return await self._stored(unit, parts, await self._do(task, Converted), final)

    async def _file(self, found: Found, target: Columns) -> Converted | None:
        """One file as Parquet in scratch; None when its types have to be decided again."""
        inferred = self._inferred[found.uri]
        self._step(Step.CONVERTING, source=found.uri)
        if not inferred.columns:
            self._advance(found.size)
            return Converted((), 0, {})
        async with self._at_hand(found) as file:
            task = Convert(file, inferred, target, str(self._new_path("out")), self._rejects_max())
            answer: Converted | Retype = await self._do(task, Converted | Retype, size=found.size)
        if isinstance(answer, Retype):
            self._inferred[found.uri] = Inferred(inferred.format, inferred.compression, answer.columns)
            return None
        if found.uri in self._downloaded:
            await self._runtime.run_io(self._downloaded.pop(found.uri).unlink)
        self._advance(found.size, answer.rows)
        return answer

    def _rejects_max(self) -> int:
        asked = self._spec.max_rejects
        so_far = sum(each.rejects for each in self._made.values())
        return REJECTS_MAX if asked is None else min(REJECTS_MAX, max(0, asked - so_far))

    def _check_rejects(self) -> None:
        rejects = sum(each.rejects for each in self._made.values())
        if self._spec.max_rejects is not None and rejects > self._spec.max_rejects:
            raise Invalid(
                f"more rows cannot be read than max_rejects allows. rejects=`{rejects}` "
                f"max_rejects=`{self._spec.max_rejects}`"
            )

    async def _stored(
        self, unit: Sequence[Found], parts: Sequence[Converted], done: Converted, final: Schema
    ) -> _Made:
        """Upload what was written, and note in the ledger what it came of."""
        single = unit[0].uri if len(unit) == 1 else None
        objects = await self._upload(done, single)
        keys = tuple(str(each["key"]) for each in objects)
        entries = tuple(
            SourceEntry(
                each.uri,
                each.etag,
                each.size,
                done.rows if single else None,
                keys,
                part.rejects,
                each.reader,
                final.names if self._spec.transform is not None else self._inferred[each.uri].schema.names,
                done.stats if at == 0 else None,
            )
            for at, (each, part) in enumerate(zip(unit, parts, strict=True))
        )
        rejects = [part for part in parts if part.rejects_path is not None]
        gathered = await self._gathered([str(part.rejects_path) for part in rejects], None, ())
        count = sum(part.rejects for part in rejects)
        return _Made(Written(entries, objects, done.stats, final), count, gathered, done.sample)

    async def _upload(self, done: Converted, source: str | None) -> tuple[Mapping[str, Any], ...]:
        self._step(Step.UPLOADING)
        objects = []
        for part in done.parts:
            key = manifest.data_key(self._spec.name, self._attempt, next(self._objects))
            etag = ""
            if not self._spec.dry_run:
                await self._put(key, Path(part.path))
                etag = (await self._store.head(key)).etag
            await self._runtime.run_io(Path(part.path).unlink)
            objects.append({"key": key, "size": part.size, "etag": etag, "rows": part.rows, "source": source})
        return tuple(objects)

    async def _put(self, key: str, path: Path) -> None:
        self._uploaded.add(key)
        await self._store.upload(key, path)

    async def _fitting(self, unit: Written, final: Schema) -> Written:
        """The unit in the final schema: as it is, or written once more."""
        if unit.schema == final or not unit.objects:
            return replace(unit, schema=final)
        if self._spec.dry_run:
            return replace(unit, schema=final)
        self._step(Step.REWRITING)
        paths = [await self._fetched(str(each["key"])) for each in unit.objects]
        own, target = columns_of(unit.schema), columns_of(final)
        task = Rewrite(tuple(map(str, paths)), own, target, str(self._new_path("out")))
        done = await self._do(task, Converted)
        for path in paths:
            await self._runtime.run_io(path.unlink)
        objects = await self._upload(done, next(iter(unit.objects)).get("source"))
        keys = tuple(str(each["key"]) for each in objects)
        entries = tuple(
            replace(entry, objects=keys, stats=done.stats if at == 0 else None)
            for at, entry in enumerate(unit.entries)
        )
        return Written(entries, objects, done.stats, final)

    async def _fetched(self, key: str) -> Path:
        path = self._new_path("object")
        await self._store.download(key, path)
        return path

    # --- rejected rows

    async def _gathered(self, paths: Sequence[str], old: Path | None, kept: Sequence[str]) -> str | None:
        if len(paths) <= 1 and old is None:
            return paths[0] if paths else None
        out = self._new_path("rejects")
        await self._do(
            Gather(tuple(paths), None if old is None else str(old), tuple(kept), str(out)), Converted
        )
        return str(out)

    async def _rejects(
        self, newest: Manifest | None, kept: Sequence[SourceEntry], made: Sequence[_Made]
    ) -> tuple[Rejects | None, Sequence[Reject]]:
        """The rejected rows of the next version as one object: those of new sources, and of old ones that stay."""
        staying = [entry for entry in kept if entry.rejects]
        count = sum(entry.rejects for entry in staying) + sum(each.rejects for each in made)
        if not count:
            return None, ()
        old = None
        if staying and newest is not None and newest.rejects is not None:
            old = await self._fetched(newest.rejects.key)
        paths = [each.rejects_path for each in made if each.rejects_path is not None]
        gathered = await self._gathered(paths, old, [entry.uri for entry in staying])
        key = manifest.rejects_key(self._spec.name, self._attempt)
        if gathered is not None and not self._spec.dry_run:
            await self._put(key, Path(gathered))
        return Rejects(count, key), await self._first_rejects(made)

    async def _first_rejects(self, made: Sequence[_Made]) -> Sequence[Reject]:
        """The first rejected rows of this run."""
        shown: list[Reject] = []
        for each in made:
            if each.rejects_path is not None and len(shown) < REJECTS_SHOWN:
                path, wanted = Path(each.rejects_path), REJECTS_SHOWN - len(shown)
                shown += await self._runtime.run_io(read_rejects, path, 0, wanted)
        return shown

    # --- small things

    async def _do(self, task: Task, kind: type[T] | Any, size: int = 0) -> Any:
        """One task's answer; `size` bytes are read while it is done."""
        before, most = self._progress, 0.0

        def told(done: float) -> None:
            nonlocal most
            most = max(most, done)  # a task is several queries, each of which begins at 0
            self._tell(replace(before, bytes_read=before.bytes_read + int(size * most)))

        answer: Answer = await self._converter.do(task, told)
        assert isinstance(answer, kind)
        return answer

    def _step(self, step: Step, source: str = "") -> None:
        self._progress = replace(self._progress, step=step, source=source)
        self._tell(self._progress)

    def _advance(self, size: int, rows: int = 0) -> None:
        now = self._progress
        self._progress = replace(
            now, bytes_read=now.bytes_read + size, rows=now.rows + rows, files=now.files + 1
        )
        self._tell(self._progress)

    def _new_path(self, what: str) -> Path:
        return self._folder / f"{what}-{next(self._numbers)}"


def _check_some_rows(made: Sequence[_Made], rejected: Sequence[Reject]) -> None:
    """Nothing but rejected rows is a wrong format or wrong options, not a dataset."""
    if rejected and not any(each.written.rows for each in made):
        first = rejected[0]
        raise Invalid(
            f"every row was rejected, so nothing is published. rejects=`{sum(each.rejects for each in made)}` "
            f"source=`{first.source}` line=`{first.line}` error=`{first.error}`"
        )


def read_rejects(path: Path, offset: int, limit: int) -> list[Reject]:
    """Rejected rows from `offset` on, at most `limit`, in bounded memory.  Blocks on the disk."""
    found: list[Reject] = []
    seen = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1_024):
            if seen + len(batch) > offset:
                rows = batch.slice(max(0, offset - seen), limit - len(found)).to_pylist()
                found += [Reject(**row) for row in rows]
            seen += len(batch)
            if len(found) >= limit:
                break
    return found
