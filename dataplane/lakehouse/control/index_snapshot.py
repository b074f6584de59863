"""What to do next about an IndexSnapshot: take it once, within its deadline, and tell what became of it.

A snapshot is complete when its record is in the store, whoever took it.  A record from before the resource was made is
another snapshot of that name, unless it is adopted.  One that is not complete by its deadline has failed for good: a
worker that died cannot leave it running for ever.  What this module does not do: decide when snapshots are taken
(`snapshot_schedule`).
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from lakehouse.control import conditions, rounds
from lakehouse.control.conditions import Condition, ConditionType, Status, false, true, unknown
from lakehouse.control.kinds import DeletionPolicy, IndexSnapshotSpec, VectorIndexSpec
from lakehouse.control.plan import Action, DeleteSnapshotFiles, Plan, StopWork, TakeSnapshot
from lakehouse.control.state import (
    ADOPT_ANNOTATION,
    Act,
    ObservedIndexSnapshot,
    Resource,
    SnapshotRecord,
    SnapshotState,
)
from lakehouse.core.incarnation import Incarnation

_KIND = ConditionType.COMPLETE
NAME_TAKEN = "NameTaken"
FINAL = ("DeadlineExceeded", "FilesGone", NAME_TAKEN)
"""Reasons of `Complete=False` after which nothing is tried again."""
CLOCKS_DIFFER = timedelta(seconds=60)
"""Between whoever takes a snapshot and whoever dates resources; an older record is no matter of clocks."""


def reconcile(resource: Resource[IndexSnapshotSpec], observed: ObservedIndexSnapshot, now: datetime) -> Plan:
    """The next round for one IndexSnapshot."""
    if resource.meta.deletion_requested:
        return _deletion(resource, observed, now)
    remaining = (_deadline(resource) - now).total_seconds()
    complete = _complete(resource, observed, remaining)
    actions = _actions(resource, observed, complete, remaining, now)
    found = [true(ConditionType.ACCEPTED, "Valid"), rounds.storage(observed.store), complete]
    found.append(rounds.paused(resource))
    waits = [] if _is_final(complete) else _waits(resource, observed, remaining, now)
    fields = _fields(resource, observed, complete)
    if fields["startedAt"] is None and not resource.meta.paused and any(one.long for one in actions):
        # Written before it is begun: what its status did not begin was not taken for it.
        fields["startedAt"] = conditions.timestamp(now)
    return rounds.plan(resource, fields, found, actions, waits, now, failures=observed.failures)


def life_of(status: Mapping[str, Any]) -> UUID | None:
    """The life of its index that an IndexSnapshot was taken of; None before it was."""
    position = str(status.get("position", ""))
    return UUID(hex=position.partition(":")[0]) if position else None


def home_of(status: Mapping[str, Any], alive: Incarnation | None) -> UUID | None:
    """Where a snapshot's files lie: in the life that its status names, else in the one that is `alive`."""
    return life_of(status) or (None if alive is None else alive.uuid)


def has_begun(status: Mapping[str, Any]) -> bool:
    """Whether an IndexSnapshot was ever begun or found: only then anything in the store may be its."""
    return bool(status.get("startedAt") or status.get("position"))


def is_awaited(snapshot: Resource[IndexSnapshotSpec], index: Resource[VectorIndexSpec]) -> bool:
    """Whether an index is still to be restored from a snapshot, by its name or by where it lies.

    One that is to go, is suspended, or was there before and is not restored any more, waits for nothing.
    """
    asked = index.spec.bootstrap
    if asked is None or index.meta.deletion_requested or index.spec.suspend:
        return False
    restored = conditions.find(index.status, ConditionType.RESTORED)
    if restored.get("status") == Status.TRUE or restored.get("reason") == "NotEmpty":
        return False
    return (asked.name or asked.uri) in subjects(snapshot)


def subjects(snapshot: Resource[IndexSnapshotSpec]) -> tuple[str, ...]:
    """What restoring from a snapshot is called: the `subject` of a `RestoreIndex`."""
    uri = str(snapshot.status.get("uri", ""))
    return (snapshot.meta.name, uri) if uri else (snapshot.meta.name,)


def is_name_taken(status: Mapping[str, Any]) -> bool:
    """Whether another snapshot, from before, has its name."""
    return bool(conditions.find(status, _KIND).get("reason") == NAME_TAKEN)


def state_of(status: Mapping[str, Any]) -> SnapshotState:
    """Where a snapshot stands, by its status."""
    complete = conditions.find(status, _KIND)
    if complete.get("status") == Status.TRUE:
        return SnapshotState.SUCCEEDED
    if complete.get("reason") in FINAL:
        return SnapshotState.FAILED
    return SnapshotState.RUNNING if complete.get("reason") == "Running" else SnapshotState.PENDING


def _deadline(resource: Resource[IndexSnapshotSpec]) -> datetime:
    return resource.meta.created_at + timedelta(seconds=resource.spec.deadline_s)


def _take(resource: Resource[IndexSnapshotSpec], remaining: float) -> TakeSnapshot:
    return TakeSnapshot(resource.spec.index, resource.meta.name, max(0.0, remaining))


def _is_final(complete: Condition) -> bool:
    return complete.status is Status.TRUE or complete.reason in FINAL


def _actions(
    resource: Resource[IndexSnapshotSpec],
    observed: ObservedIndexSnapshot,
    complete: Condition,
    remaining: float,
    now: datetime,
) -> list[Action]:
    if observed.work is not None:
        return [StopWork()] if _is_final(complete) else []
    if _is_final(complete) or observed.store.reachable is not True or not observed.index_serving:
        return []
    take = _take(resource, remaining)
    return [] if rounds.held_s(observed.failures, take, now) else [take]


def _waits(
    resource: Resource[IndexSnapshotSpec], observed: ObservedIndexSnapshot, remaining: float, now: datetime
) -> list[float | None]:
    waits: list[float | None] = [
        remaining,
        rounds.held_s(observed.failures, _take(resource, remaining), now) or None,
    ]
    if observed.work is not None or not observed.index_serving or observed.store.reachable is not True:
        waits.append(rounds.WORKING_S)
    return waits


def _complete(
    resource: Resource[IndexSnapshotSpec], observed: ObservedIndexSnapshot, remaining: float
) -> Condition:
    before = conditions.find(resource.status, _KIND)
    if observed.record is not None:
        if not _is_its(resource, observed.record):
            return false(_KIND, NAME_TAKEN, _taken(observed.record))
        return true(_KIND, "Verified")
    if observed.store.reachable is not True and (
        before.get("status") == Status.TRUE or before.get("reason") in FINAL
    ):
        return Condition(_KIND, Status(before["status"]), before["reason"], before.get("message", ""))
    if before.get("status") == Status.TRUE or before.get("reason") == "FilesGone":
        return false(_KIND, "FilesGone", "it was complete, and its files are not there any more")
    failed = rounds.failure_of(observed.failures, Act.TAKE_SNAPSHOT, resource.meta.name)
    why = failed.message if failed is not None else _waiting_for(resource, observed)
    if before.get("reason") == "DeadlineExceeded":
        return false(_KIND, "DeadlineExceeded", before.get("message", ""))
    if remaining <= 0:
        told = f"not complete {resource.spec.deadline_s} s after it was asked for"
        return false(_KIND, "DeadlineExceeded", f"{told}: {why}" if why else told)
    if observed.work is not None:
        return unknown(_KIND, "Running", observed.work.progress)
    if failed is not None:
        return conditions.waiting(_KIND, "Retrying", f"{why} (attempt {failed.attempts})")
    return unknown(_KIND, "Pending", why)


def _is_its(resource: Resource[IndexSnapshotSpec], record: SnapshotRecord) -> bool:
    """Whether a record is this resource's: begun by it, found by it before, adopted, or no older than it is."""
    if has_begun(resource.status) or resource.meta.annotations.get(ADOPT_ANNOTATION) == "true":
        return True
    created_at = resource.meta.created_at
    return record.completed_at is not None and record.completed_at >= created_at - CLOCKS_DIFFER


def _taken(record: SnapshotRecord) -> str:
    when = f"at {conditions.timestamp(record.completed_at)}" if record.completed_at else "at an unknown time"
    return (
        f"a snapshot of this name was taken {when}, before this one was asked for; use another name, or take that one "
        f'as this one with the annotation {ADOPT_ANNOTATION}: "true"'
    )


def _waiting_for(resource: Resource[IndexSnapshotSpec], observed: ObservedIndexSnapshot) -> str:
    if observed.store.reachable is not True:
        return observed.store.detail or "the store does not answer"
    if not observed.index_exists:
        missing = "the index has not begun yet" if observed.index_declared else "no such VectorIndex"
        return f"{missing}. name=`{resource.spec.index}`"
    return "" if observed.index_serving else "the index does not answer"


def _fields(
    resource: Resource[IndexSnapshotSpec], observed: ObservedIndexSnapshot, complete: Condition
) -> dict[str, Any]:
    before = resource.status
    record = observed.record if complete.status is Status.TRUE else None
    started = conditions.timestamp(observed.work.started_at) if observed.work is not None else None
    kept = {"startedAt": before.get("startedAt") or started}
    if record is None:
        names = ("uri", "digest", "position", "items", "size", "completedAt")
        return {**{name: before.get(name) for name in names}, **kept}
    return {
        "uri": record.uri,
        "digest": record.digest,
        "position": record.position,
        "items": record.items,
        "size": record.size,
        "completedAt": conditions.timestamp(record.completed_at)
        if record.completed_at
        else before.get("completedAt"),
        **kept,
    }


def _deletion(resource: Resource[IndexSnapshotSpec], observed: ObservedIndexSnapshot, now: datetime) -> Plan:
    # While an index is being restored from it, the files stay; that ends, well or not.
    files = DeleteSnapshotFiles(resource.spec.index, resource.meta.name)
    record = observed.record
    left = observed.left_behind and has_begun(resource.status)
    return rounds.deletion(
        resource,
        cleanup=files if left or (record is not None and _is_its(resource, record)) else None,
        wanted=resource.spec.deletion_policy is DeletionPolicy.DELETE,
        store=observed.store,
        failures=observed.failures,
        working=observed.work is not None,
        ready=_KIND,
        now=now,
        in_use=observed.in_use,
    )
