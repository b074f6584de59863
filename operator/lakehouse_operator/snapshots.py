"""IndexSnapshots as the operator sees them: the resources of an index, and the files of one of them.

A snapshot outlives its index, so no owner reference ties them; what ties them is the name in the snapshot's spec and
the life in its status.  What this module does not do: take or delete one.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from lakehouse import named_snapshots
from lakehouse.control import index_snapshot
from lakehouse.control.kinds import INDEX_SNAPSHOT, IndexSnapshotSpec
from lakehouse.control.state import (
    SCHEDULED_FOR_ANNOTATION,
    Act,
    ObservedSnapshot,
    Resource,
    SnapshotRecord,
)
from lakehouse.core import names as keys
from lakehouse.core.incarnation import Incarnation
from lakehouse.core.types import Position
from lakehouse.named_snapshots import NamedSnapshot
from lakehouse.store.base import ObjectStore
from lakehouse_operator import jobs, names
from lakehouse_operator.cache import Cache, key_of
from lakehouse_operator.kube import JOB
from lakehouse_operator.parts import Parts


def of_index(cache: Cache, namespace: str, index: str) -> tuple[ObservedSnapshot, ...]:
    """The IndexSnapshots of an index, by name."""
    found = (cache.parsed(key_of(body)) for body in cache.resources(INDEX_SNAPSHOT, namespace))
    ours = [one for one in found if one is not None and one.spec.index == index]
    return tuple(_seen(cache, one) for one in sorted(ours, key=lambda one: one.meta.name))


def _seen(cache: Cache, resource: Resource[IndexSnapshotSpec]) -> ObservedSnapshot:
    meta, status = resource.meta, resource.status
    return ObservedSnapshot(
        meta.name,
        index_snapshot.state_of(status),
        meta.created_at,
        completed_at=_moment(status.get("completedAt")),
        scheduled_for=_moment(meta.annotations.get(SCHEDULED_FOR_ANNOTATION)),
        uri=status.get("uri", ""),
        position=status.get("position", ""),
        digest=status.get("digest", ""),
        items=status.get("items"),
        size=status.get("size"),
        in_use=is_in_use(cache, str(meta.namespace), meta.name),
        deleting=meta.deletion_requested,
    )


def is_in_use(cache: Cache, namespace: str, snapshot: str) -> bool:
    """Whether an index is being restored from a snapshot."""
    for body in cache.resources(JOB, namespace):
        told = body["metadata"].get("annotations") or {}
        restores = told.get(names.ACT_ANNOTATION) == Act.RESTORE
        if restores and told.get(names.SUBJECT_ANNOTATION) == snapshot and jobs.is_running(body):
            return True
    return False


def life_of(status: Mapping[str, Any]) -> UUID | None:
    """The life of its index that an IndexSnapshot was taken of; None before it was."""
    position = str(status.get("position", ""))
    return UUID(hex=position.partition(":")[0]) if position else None


async def record_of(
    parts: Parts, store: ObjectStore, resource: Resource[IndexSnapshotSpec], alive: Incarnation | None
) -> SnapshotRecord | None:
    """The snapshot's files: those that its status names, else those of the life that the index has."""
    life = life_of(resource.status) or (alive.uuid if alive is not None else None)
    if life is None:
        return None
    found = await files_of(store, resource.spec.index, resource.meta.name, life)
    return None if found is None else _described(parts, store, resource, found)


async def files_of(store: ObjectStore, index: str, snapshot: str, life: UUID) -> NamedSnapshot | None:
    """A named snapshot of one life, if it is whole.  Raises `Unavailable`."""
    for found in await named_snapshots.kept(store, index):
        if found.name == snapshot and found.incarnation == life:
            return found
    return None


def _described(
    parts: Parts, store: ObjectStore, resource: Resource[IndexSnapshotSpec], found: NamedSnapshot
) -> SnapshotRecord:
    index, key = resource.spec.index, (INDEX_SNAPSHOT, str(resource.meta.namespace), resource.meta.name)
    completed_at = _moment(resource.status.get("completedAt")) or parts.workshop.snapshots.get(key)
    files = sorted(found.files, key=lambda file: file.shard)
    record = keys.named_snapshot_key(index, found.incarnation, found.name)
    return SnapshotRecord(
        uri=f"{store.url}/{files[0].key if len(files) == 1 else record}",
        digest=".".join(file.digest for file in files),
        position=str(Position(found.incarnation, tuple(file.sequence for file in files))),
        items=found.items,
        size=found.size,
        completed_at=completed_at or parts.runtime.now(),
    )


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
