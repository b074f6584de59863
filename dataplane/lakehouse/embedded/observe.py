"""What one process sees of a resource, gathered afresh before every decision.

The store and the engine are asked; nothing that was decided before is taken for granted.  A store that does not answer
is itself something seen.  What this module does not do: change anything, or decide.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lakehouse import named_snapshots
from lakehouse.collection import Collection
from lakehouse.control import conditions, facts, index_snapshot
from lakehouse.control.kinds import (
    DATASET,
    INDEX_SNAPSHOT,
    VECTOR_INDEX,
    DatasetSpec,
    Drain,
    IndexSnapshotSpec,
    VectorIndexSpec,
)
from lakehouse.control.plan import BuildIndex
from lakehouse.control.state import (
    REACHABLE,
    Act,
    ObservedBootstrap,
    ObservedDataset,
    ObservedIndex,
    ObservedIndexSnapshot,
    ObservedSnapshot,
    ObservedSource,
    ObservedTarget,
    Resource,
    SnapshotRecord,
    SnapshotState,
    StoreState,
)
from lakehouse.core import manifest as manifests
from lakehouse.core.errors import Corrupt, CredentialsRefused, Invalid, NotFound, Unavailable
from lakehouse.core.incarnation import Incarnation
from lakehouse.embedded.known import Key, Registry
from lakehouse.loop.work import Workshop
from lakehouse.named_snapshots import NamedSnapshot
from lakehouse.server.declared import Parts

NAMESPACE = "default"
OWNERS = f"embedded/{NAMESPACE}/"
"""What the owners that one process writes begin with; the declared name follows."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """One index as the engine has it."""

    record: Incarnation | None
    collection: Collection | None = None
    damaged: str = ""
    suspended: bool = False


class Observer:
    """Looks at indexes, datasets and snapshots for the control loop."""

    def __init__(self, parts: Parts, registry: Registry, workshop: Workshop[Key]) -> None:
        self._parts = parts
        self._registry = registry
        self._workshop = workshop
        self.pending_since: dict[str, datetime] = {}
        """Since when an index has held items, as far as this process saw."""

    # ---------------------------------------------------------------- indexes

    async def vector_index(self, resource: Resource[VectorIndexSpec]) -> ObservedIndex:
        """Everything seen of a VectorIndex."""
        name, key = resource.meta.name, (VECTOR_INDEX, resource.meta.name)
        always: dict[str, Any] = {
            "identity": f"{OWNERS}{name}",
            "endpoint": f"/v1/vectors/index/{name}",
            "bootstrap": self._bootstrap(resource.spec),
            "snapshots": self._snapshots(name),
            "last_drain": self._workshop.drains.get(key),
            "work": self._workshop.running(key),
            "failures": self._workshop.failures(key),
        }
        try:
            seen = await self._index(name)
            unrecorded = await self._unrecorded(name, seen)
            source, why = await self._source(resource.spec)
            target = await self._target(resource.spec)
        except Unavailable as error:
            return ObservedIndex(store=_unreachable(error), **always)
        return ObservedIndex(
            store=REACHABLE,
            unrecorded=unrecorded,
            source=source,
            source_detail=why,
            target=target,
            **always,
            **self._of_life(name, seen),
        )

    async def _unrecorded(self, name: str, seen: _Seen) -> str:
        if seen.record is not None or seen.damaged or await self._parts.indexes.record(name) is not None:
            return ""
        return self._parts.store.url

    def _of_life(self, name: str, seen: _Seen) -> dict[str, Any]:
        """What depends on the life that a name has."""
        life = seen.collection
        found: dict[str, Any] = {
            "life": facts.life(seen.record),
            "damaged": seen.damaged,
            "suspended": seen.suspended,
        }
        if life is None:
            self.pending_since.pop(name, None)
            return found
        damage = next((shard.damage for shard in life.shard_list if shard.damage), "")
        return found | {
            "damaged": damage or "",
            "ef_search": life.params.ef_search,
            "items": life.length,
            "position": str(life.position),
            "serving": not damage,
            "serving_detail": damage or "",
            "replicas": 1,
            "ready_replicas": 0 if damage else 1,
            "pending_since": self.pending(name, life.length),
        }

    def pending(self, name: str, length: int) -> datetime | None:
        """Note that an index has so many items now; since when it has had any."""
        if not length:
            self.pending_since.pop(name, None)
            return None
        return self.pending_since.setdefault(name, self._parts.runtime.now())

    async def _index(self, name: str) -> _Seen:
        indexes = self._parts.indexes
        if name in indexes.suspended:
            return _Seen(await indexes.record(name), suspended=True)
        try:
            collection = await indexes.open(name)
        except NotFound:
            return _Seen(None)
        except Corrupt as error:
            return await self._damaged(name, error)
        return _Seen(collection.record, collection)

    async def _damaged(self, name: str, error: Corrupt) -> _Seen:
        try:
            return _Seen(await self._parts.indexes.record(name), damaged=error.message)
        except Corrupt:
            return _Seen(None, damaged=error.message)

    async def _source(self, spec: VectorIndexSpec) -> tuple[ObservedSource | None, str]:
        """The newest version of the dataset; for none, why there can be none, where that is known."""
        if spec.source is None:
            return None, ""
        try:
            newest = await self._parts.catalog.manifest(spec.source.dataset)
        except (NotFound, Corrupt):
            return None, ""
        except Invalid as error:
            return None, error.message
        return facts.source(newest, spec.source.vector_column), ""

    async def _target(self, spec: VectorIndexSpec) -> ObservedTarget | None:
        if spec.drain is None:
            return None
        name = spec.drain.into
        entry = self._registry.get((VECTOR_INDEX, name))
        read_only = entry is not None and entry.resource.spec.read_only
        seen = await self._index(name)
        if seen.record is None or seen.record.params is None:
            return ObservedTarget(False, read_only=read_only, chain=self._chain(name))
        params = seen.record.params
        return ObservedTarget(
            True,
            params.dimension,
            params.distance.value,
            serving=seen.collection is not None,
            read_only=read_only,
            going=entry is not None and entry.resource.meta.deletion_requested,
            chain=self._chain(name),
        )

    def _chain(self, name: str) -> tuple[str, ...]:
        """Where draining goes on to from `name`, up to the first name that comes again."""
        return facts.drain_chain(name, self._drain)

    def _drain(self, name: str) -> Drain | None:
        entry = self._registry.get((VECTOR_INDEX, name))
        return None if entry is None else entry.resource.spec.drain

    def _bootstrap(self, spec: VectorIndexSpec) -> ObservedBootstrap | None:
        if spec.bootstrap is None:
            return None
        if spec.bootstrap.name is None:
            return ObservedBootstrap(None)
        entry = self._registry.get((INDEX_SNAPSHOT, spec.bootstrap.name))
        if entry is None:
            return ObservedBootstrap(False)
        status = entry.seen.status
        complete = index_snapshot.state_of(status) is SnapshotState.SUCCEEDED
        return ObservedBootstrap(True, complete, uri=status.get("uri", ""))

    def _snapshots(self, index: str) -> tuple[ObservedSnapshot, ...]:
        return tuple(
            facts.snapshot(entry.resource, in_use=self._in_use(entry.resource))
            for _, entry in self._registry.of(INDEX_SNAPSHOT)
            if entry.resource.spec.index == index
        )

    def _in_use(self, snapshot: Resource[IndexSnapshotSpec]) -> bool:
        """Whether an index is being restored from a snapshot, or is still to be: between two attempts, too."""
        subjects = index_snapshot.subjects(snapshot)
        for name, entry in self._registry.of(VECTOR_INDEX):
            running = self._workshop.running((VECTOR_INDEX, name))
            if running is not None and running.act is Act.RESTORE and running.subject in subjects:
                return True
            if index_snapshot.is_awaited(snapshot, entry.resource):
                return True
        return False

    # --------------------------------------------------------------- datasets

    async def dataset(self, resource: Resource[DatasetSpec]) -> ObservedDataset:
        """Everything seen of a Dataset."""
        name, key = resource.meta.name, (DATASET, resource.meta.name)
        always: dict[str, Any] = {
            "last_refresh": self._workshop.refreshes.get(key),
            "work": self._workshop.running(key),
            "failures": self._workshop.failures(key),
        }
        catalog = self._parts.catalog
        try:
            always["pinned"] = await self._pinned(name)
            chain = await catalog.chain(name)
        except NotFound:  # it went just now
            return ObservedDataset(REACHABLE, **always)
        except Corrupt as error:
            return ObservedDataset(REACHABLE, damaged=error.message, **always)
        except Unavailable as error:
            return ObservedDataset(_unreachable(error), **always)
        if chain.newest is None:
            return ObservedDataset(REACHABLE, left_behind=chain.left_behind, **always)
        current, versions = facts.version(chain.newest), tuple(chain.versions)
        return ObservedDataset(REACHABLE, current=current, versions=versions, **always)

    async def last_version(self, dataset: str) -> int:
        """The number of a dataset's newest version, or of the tombstone after it, for one LIST; 0 for none."""
        listed = await self._parts.store.list(manifests.versions_prefix(dataset))
        return max((manifests.version_of(info.key) or 0 for info in listed), default=0)

    async def _pinned(self, dataset: str) -> frozenset[int]:
        """Versions that an index was built from, or is being built from, or waits for."""
        pinned = {
            work.action.version
            for work in self._workshop.all_running().values()
            if isinstance(work.action, BuildIndex) and work.action.dataset == dataset
        }
        for name in await self._parts.indexes.names():
            origin = await self._origin(name)
            if origin.get("dataset") == dataset and isinstance(version := origin.get("version"), int):
                pinned.add(version)
        return frozenset(pinned)

    async def _origin(self, index: str) -> Mapping[str, object]:
        opened = self._parts.indexes.opened(index)
        if opened is not None:
            return opened.record.origin or {}
        try:
            record = await self._parts.indexes.record(index)
        except Corrupt:
            return {}
        return {} if record is None else record.origin or {}

    # -------------------------------------------------------------- snapshots

    async def index_snapshot(self, resource: Resource[IndexSnapshotSpec]) -> ObservedIndexSnapshot:
        """Everything seen of an IndexSnapshot."""
        key = (INDEX_SNAPSHOT, resource.meta.name)
        always: dict[str, Any] = {
            "in_use": self._in_use(resource),
            "work": self._workshop.running(key),
            "failures": self._workshop.failures(key),
        }
        try:
            seen = await self._index(resource.spec.index)
            record = await self._record(resource, seen)
            asked = record is None and resource.meta.deletion_requested
            left = asked and await self._left_behind(resource, seen)
        except Unavailable as error:
            return ObservedIndexSnapshot(_unreachable(error), **always)
        return ObservedIndexSnapshot(
            REACHABLE,
            record=record,
            left_behind=left,
            index_declared=self._registry.get((VECTOR_INDEX, resource.spec.index)) is not None,
            index_exists=seen.record is not None and seen.record.alive,
            index_serving=seen.collection is not None,
            **always,
        )

    async def _record(self, resource: Resource[IndexSnapshotSpec], seen: _Seen) -> SnapshotRecord | None:
        """The snapshot's files, if they are whole."""
        life = index_snapshot.home_of(resource.status, seen.record)
        for found in await self._parts.indexes.named_snapshots(resource.spec.index):
            if found.name == resource.meta.name and found.incarnation == life:
                return self._described(resource, found)
        return None

    async def _left_behind(self, resource: Resource[IndexSnapshotSpec], seen: _Seen) -> bool:
        """Whether anything of the snapshot is there, though no record tells of it."""
        life = index_snapshot.home_of(resource.status, seen.record)
        index, name = resource.spec.index, resource.meta.name
        if life is None:
            return False
        was_whole = index_snapshot.life_of(resource.status) is not None
        return await named_snapshots.left_behind(self._parts.store, index, name, life, was_whole=was_whole)

    def _described(self, resource: Resource[IndexSnapshotSpec], found: NamedSnapshot) -> SnapshotRecord:
        seen_at = self._workshop.snapshots.get((INDEX_SNAPSHOT, found.name))
        known = conditions.moment(resource.status.get("completedAt")) or seen_at
        return named_snapshots.record_of(self._parts.store, resource.spec.index, found, known)

    async def observe(self, key: Key, resource: Resource[Any]) -> Any:
        """What its kind's `reconcile` wants to know."""
        if key[0] == VECTOR_INDEX:
            return await self.vector_index(resource)
        if key[0] == DATASET:
            return await self.dataset(resource)
        return await self.index_snapshot(resource)


def _unreachable(error: Unavailable) -> StoreState:
    reason = "AccessDenied" if isinstance(error, CredentialsRefused) else "Timeout"
    return StoreState(False, reason, error.message)
