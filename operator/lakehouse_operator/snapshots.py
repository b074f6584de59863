"""IndexSnapshots as the operator sees them: the resources of an index, and the files of one of them.

A snapshot outlives its index, so no owner reference ties them; what ties them is the name in the snapshot's spec and
the life in its status.  What this module does not do: take or delete one.
"""

from uuid import UUID

from lakehouse import named_snapshots
from lakehouse.control import conditions, facts, index_snapshot
from lakehouse.control.kinds import INDEX_SNAPSHOT, VECTOR_INDEX, IndexSnapshotSpec
from lakehouse.control.state import (
    Act,
    ObservedSnapshot,
    Resource,
    SnapshotRecord,
)
from lakehouse.core.incarnation import Incarnation
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
    return tuple(
        facts.snapshot(one, in_use=is_in_use(cache, namespace, one))
        for one in sorted(ours, key=lambda one: one.meta.name)
    )


def is_in_use(cache: Cache, namespace: str, snapshot: Resource[IndexSnapshotSpec]) -> bool:
    """Whether an index of the namespace is being restored from a snapshot, or still to be: between attempts, too."""
    subjects = index_snapshot.subjects(snapshot)
    for body in cache.resources(JOB, namespace):
        told = body["metadata"].get("annotations") or {}
        restores = told.get(names.ACT_ANNOTATION) == Act.RESTORE
        if restores and told.get(names.SUBJECT_ANNOTATION) in subjects and jobs.is_running(body):
            return True
    declared = (cache.parsed(key_of(body)) for body in cache.resources(VECTOR_INDEX, namespace))
    return any(one is not None and index_snapshot.is_awaited(snapshot, one) for one in declared)


async def record_of(
    parts: Parts, store: ObjectStore, resource: Resource[IndexSnapshotSpec], alive: Incarnation | None
) -> SnapshotRecord | None:
    """The snapshot's files, if they are whole."""
    life = index_snapshot.home_of(resource.status, alive)
    if life is None:
        return None
    found = await files_of(store, resource.spec.index, resource.meta.name, life)
    if found is None:
        return None
    key = (INDEX_SNAPSHOT, str(resource.meta.namespace), resource.meta.name)
    known = conditions.moment(resource.status.get("completedAt")) or parts.workshop.snapshots.get(key)
    return named_snapshots.record_of(store, resource.spec.index, found, known)


async def left_behind(
    store: ObjectStore, resource: Resource[IndexSnapshotSpec], alive: Incarnation | None
) -> bool:
    """Whether anything of the snapshot is there, though no record tells of it."""
    life = index_snapshot.home_of(resource.status, alive)
    if life is None:
        return False
    was_whole = index_snapshot.life_of(resource.status) is not None
    return await named_snapshots.left_behind(
        store, resource.spec.index, resource.meta.name, life, was_whole=was_whole
    )


async def files_of(store: ObjectStore, index: str, snapshot: str, life: UUID) -> NamedSnapshot | None:
    """A named snapshot of one life, if it is whole.  Raises `Unavailable`."""
    for found in await named_snapshots.kept(store, index):
        if found.name == snapshot and found.incarnation == life:
            return found
    return None
