"""Doing what a plan says, in one process: short things at once, long ones as work beside the loop.

Every action may be repeated: what is done already is found done.  Work that is cancelled or killed leaves nothing that
anyone can see, because content comes first and its record last.  What this module does not do: decide.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import UUID

from lakehouse import building
from lakehouse.control import index_snapshot, plan
from lakehouse.control.kinds import (
    DATASET,
    INDEX_SNAPSHOT,
    VECTOR_INDEX,
    DatasetSpec,
    IndexSnapshotSpec,
    VectorIndexSpec,
)
from lakehouse.control.plan import Action
from lakehouse.control.state import ADOPT_ANNOTATION, LastDrain, LastRefresh, RefreshResult, Resource
from lakehouse.core import named, names
from lakehouse.core.errors import Conflict, Invalid, NotFound, Outcome, Unavailable
from lakehouse.dataset_rows import Columns, Rows
from lakehouse.embedded.known import Key, Registry
from lakehouse.ingest.declared import spec_of
from lakehouse.ingest.spec import IngestResult
from lakehouse.loop.work import DeadlineExceeded, Work, Workshop
from lakehouse.replacing import Start
from lakehouse.server.declared import Parts
from lakehouse.store.open import open_store
from lakehouse.store.s3 import S3Settings


@dataclass(frozen=True, slots=True)
class Wishes:
    """What acting needs of whoever keeps the resources."""

    create: Callable[[dict[str, Any]], Awaitable[None]]
    """Apply a document unless its resource is there."""
    ask_deletion: Callable[[Key], Awaitable[None]]
    forget: Callable[[Key], Awaitable[None]]


Convert = Callable[..., Awaitable[IngestResult]]
"""`lakehouse.ingest.run`, or what takes its place in a simulation."""


class Actor:
    """Applies actions to the parts of this process."""

    def __init__(
        self, parts: Parts, registry: Registry, workshop: Workshop[Key], wishes: Wishes, convert: Convert
    ) -> None:
        self._parts = parts
        self._registry = registry
        self._workshop = workshop
        self._wishes = wishes
        self._convert = convert

    async def apply(self, action: Action, resource: Resource[Any]) -> None:
        """Do it, or start it when it is long.  Raises what the engine, the catalog or the store raise."""
        key = (resource.kind, resource.meta.name)
        if action.long:
            self._workshop.start(key, action, lambda work: self._work(action, resource, work))
        else:
            await self._short(action, resource, key)

    async def _short(self, action: Action, resource: Resource[Any], key: Key) -> None:
        """What concerns any kind; the rest is the index's or the dataset's."""
        match action:
            case plan.StopWork():
                await self._workshop.stop(key, action.failed)
            case plan.RemoveResource():
                await self._wishes.forget(key)
            case plan.CreateSnapshotResource():
                await self._wishes.create(action.document())
            case plan.RetireSnapshot():
                await self._retire_snapshot(action)
            case plan.DeleteSnapshotFiles():
                await self._delete_snapshot_files(action, resource)
            case plan.RetireVersions():
                await self._parts.catalog.retire(resource.meta.name, action.keep, action.pinned)
            case plan.DropDataset():
                await _absent_is_well(self._parts.catalog.drop(resource.meta.name))
            case _:
                await self._on_index(action, resource.meta.name)

    async def _on_index(self, action: Action, name: str) -> None:
        indexes = self._parts.indexes
        match action:
            case plan.CreateIndex():
                await indexes.create(action.params, action.shards, owner=action.owner)
            case plan.SetEfSearch():
                await indexes.set_ef_search(name, action.ef_search)
            case plan.TakeOver():
                await indexes.take_over(name, action.owner)
            case plan.Suspend():
                await indexes.suspend(name)
            case plan.Resume():
                await indexes.resume(name)
            case plan.DropIndex():
                await _absent_is_well(indexes.drop(name))
            case _:
                raise NotImplementedError(f"no way to apply {action.act}")

    async def _work(self, action: Action, resource: Resource[Any], work: Work) -> None:
        name = resource.meta.name
        match action:
            case plan.BuildIndex():
                await self._build(action, resource, work)
            case plan.RestoreIndex():
                await self._restore(action, name)
            case plan.RebuildIndex():
                await self._rebuild(action, name, work)
            case plan.Merge():
                await self._merge(action, name)
            case plan.Ingest():
                await self._ingest(action, resource, work)
            case plan.TakeSnapshot():
                await self._take_snapshot(action, resource)
            case _:
                raise NotImplementedError(f"no way to run {action.act}")

    # ---------------------------------------------------------------- indexes

    async def _vacancy(self, action: plan.BuildIndex, resource: Resource[VectorIndexSpec]) -> Start:
        """Where a life begins that is built, in the place of what the name lives now.

        What that one acknowledges from now on is taken over; what it has now goes.  Raises `Conflict` where it may have
        got items, since it was decided about, that no dataset gave it.
        """
        name, indexes = action.params.name, self._parts.indexes
        start = await indexes.vacancy(name, action.shards, replaces=action.replaces)
        if start.ends is None:
            return start
        async with indexes.abandoned_on_failure(name, start, only_pin=True):
            life, record = await indexes.fresh(name), await indexes.record(name)
            given = record is not None and record.is_given
            empty = not life.length and "dataset" not in (life.origin or {})
            if not (given or empty or resource.meta.annotations.get(ADOPT_ANNOTATION) == "true"):
                raise Conflict(f"the index was written to meanwhile: look again. index=`{name}`")
        assert start.continues is not None
        # Empty by now: what it held where it is replaced was deleted since.
        return replace(start, continues=replace(start.continues, empty=empty))

    async def _build(self, action: plan.BuildIndex, resource: Resource[VectorIndexSpec], work: Work) -> None:
        parts = self._parts
        manifest = await parts.catalog.manifest(action.dataset, action.version)
        columns = Columns(
            action.id_column, action.vector_column, action.metadata_columns, action.params.dimension
        )
        rows = Rows(manifest, columns, parts.store, parts.runtime, parts.scratch)
        total = manifest.row_count
        batches = rows.batches()
        async with contextlib.aclosing(batches):
            start = await self._vacancy(action, resource)
            await building.build(
                parts.indexes,
                action.params,
                action.shards,
                batches,
                owner=action.owner,
                origin=dict(action.origin),
                start=start,
                progress=lambda done: work.tell(_progress(done, total)),
            )

    async def _restore(self, action: plan.RestoreIndex, name: str) -> None:
        async with contextlib.AsyncExitStack() as stack:
            if action.snapshot is not None:
                files: Sequence[str | Path] = await self._named_files(action.snapshot)
            else:
                files = await self._files_at(str(action.uri), stack)
            await building.restore(
                self._parts.indexes,
                name,
                files,
                shards=action.shards,
                owner=action.owner,
                origin=dict(action.origin),
                params=action.params,
            )

    async def _named_files(self, snapshot: str) -> Sequence[str]:
        """The files of an IndexSnapshot, which its status leads to, also when its index is gone."""
        entry = self._registry.get((INDEX_SNAPSHOT, snapshot))
        if entry is None:
            raise NotFound(f"no such IndexSnapshot. name=`{snapshot}`")
        life = index_snapshot.life_of(entry.seen.status)
        for found in await self._parts.indexes.named_snapshots(entry.resource.spec.index):
            if found.name == snapshot and found.incarnation == life:
                return found.keys
        raise NotFound(f"the files of this IndexSnapshot are gone. name=`{snapshot}`")

    async def _files_at(self, uri: str, stack: contextlib.AsyncExitStack) -> Sequence[str | Path]:
        """What a URI leads to: a key of this store, a file on this machine, or an object of a bucket."""
        parts = self._parts
        inside = f"{parts.store.url.rstrip('/')}/"
        if uri.startswith(inside):
            return await self._keys(uri.removeprefix(inside))
        if uri.startswith("s3://"):
            path = parts.scratch / f"restored-{parts.runtime.uuid().hex}{names.LHV1_SUFFIX}"
            stack.push_async_callback(parts.runtime.run_io, path.unlink, missing_ok=True)
            await self._download(uri, path)
            return [path]
        if uri.startswith("file://"):
            return [Path(unquote(urlsplit(uri).path))]
        return [Path(uri)] if uri.startswith("/") else await self._keys(uri)

    async def _keys(self, key: str) -> Sequence[str]:
        """The files that a record of a named snapshot lists, or the one file itself."""
        if key.endswith(".json"):
            return [file.key for file in named.decode(await self._parts.store.get(key))]
        return [key]

    async def _download(self, uri: str, path: Path) -> None:
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        settings = self._parts.settings
        store = await open_store(
            f"s3://{bucket}",
            self._parts.runtime,
            s3=S3Settings.of(settings),
            probed=False,
        )
        try:
            await store.download(key, path)
        finally:
            await store.close()

    async def _rebuild(self, action: plan.RebuildIndex, name: str, work: Work) -> None:
        """A new life from the items of the old, which goes on being read and written meanwhile."""
        total = (await self._parts.indexes.open(name)).length
        await building.rebuild(
            self._parts.indexes, action.params, progress=lambda done: work.tell(_progress(done, total))
        )

    async def _merge(self, action: plan.Merge, name: str) -> None:
        result = await self._parts.indexes.merge(
            name, action.into, clear_source=action.clear, replace=action.replace
        )
        if result.failed:
            raise Invalid(f"{result.failed} items could not be merged: {result.first_error}")
        self._workshop.drains[(VECTOR_INDEX, name)] = LastDrain(self._parts.runtime.now(), result.merged)

    # --------------------------------------------------------------- datasets

    async def _ingest(self, action: plan.Ingest, resource: Resource[DatasetSpec], work: Work) -> None:
        parts, name = self._parts, resource.meta.name
        deadline_s = resource.spec.deadline_s
        try:
            async with asyncio.timeout(deadline_s):
                result = await self._convert(
                    spec_of(name, resource.spec),
                    parts.catalog,
                    parts.store,
                    parts.runtime,
                    parts.settings,
                    lambda progress: work.tell(progress.told),
                    scratch=parts.scratch,
                )
        except TimeoutError as error:
            raise DeadlineExceeded(f"the refresh took longer than {deadline_s} s and was stopped") from error
        self._workshop.refreshes[(DATASET, name)] = LastRefresh(
            action.subject,
            work.started_at,
            parts.runtime.now(),
            RefreshResult.PUBLISHED if result.published else RefreshResult.UNCHANGED,
            result.manifest.version,
            result.rejects,
        )

    # -------------------------------------------------------------- snapshots

    async def _delete_snapshot_files(
        self, action: plan.DeleteSnapshotFiles, resource: Resource[IndexSnapshotSpec]
    ) -> None:
        """Those of the life that it was taken of; another life may have a snapshot of the same name."""
        life = await self._home_of(resource)
        if life is not None:
            await _absent_is_well(self._parts.indexes.delete_named_snapshot(action.index, action.name, life))

    async def _home_of(self, resource: Resource[IndexSnapshotSpec]) -> UUID | None:
        known = index_snapshot.life_of(resource.status) is not None
        alive = None if known else await self._parts.indexes.record(resource.spec.index)
        return index_snapshot.home_of(resource.status, alive)

    async def _retire_snapshot(self, action: plan.RetireSnapshot) -> None:
        entry = self._registry.get((INDEX_SNAPSHOT, action.name))
        if entry is not None:
            if index_snapshot.has_begun(entry.seen.status):  # else what has its name is another's
                files = plan.DeleteSnapshotFiles(action.index, action.name)
                await self._delete_snapshot_files(files, entry.resource)
            await self._wishes.ask_deletion((INDEX_SNAPSHOT, action.name))

    async def _take_snapshot(self, action: plan.TakeSnapshot, resource: Resource[IndexSnapshotSpec]) -> None:
        indexes = self._parts.indexes
        try:
            async with asyncio.timeout(action.deadline_s):
                collection = await indexes.fresh(action.index)
                await collection.snapshot(action.name)
                self._workshop.snapshots[(INDEX_SNAPSHOT, action.name)] = self._parts.runtime.now()
        except Conflict as error:
            if await self._is_whole(resource):
                return
            # Another is taking it, or its record is damaged: asking at once again would be for ever.
            raise Unavailable(error.message, outcome=Outcome.NOT_COMMITTED) from error
        except TimeoutError as error:
            raise Unavailable(
                f"the snapshot took longer than {action.deadline_s:g} s. name=`{action.name}`",
                outcome=Outcome.NOT_COMMITTED,
            ) from error

    async def _is_whole(self, resource: Resource[IndexSnapshotSpec]) -> bool:
        life = await self._home_of(resource)
        named = await self._parts.indexes.named_snapshots(resource.spec.index)
        return any((one.name, one.incarnation) == (resource.meta.name, life) for one in named)


async def _absent_is_well(act: Awaitable[object]) -> None:
    with contextlib.suppress(NotFound):
        await act


def _progress(done: int, total: int | None) -> str:
    return f"{done:,} rows" if total is None else f"{done:,} of {total:,} rows"
