"""What every kind's reconcile shares: waiting after a failure, the store's condition, and how a round is put together.

What this module does not do: decide anything about a kind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from lakehouse.control import conditions
from lakehouse.control.conditions import Condition, ConditionType
from lakehouse.control.plan import (
    Action,
    CreateSnapshotResource,
    DropDataset,
    DropIndex,
    Event,
    EventType,
    Plan,
    RemoveResource,
    StopWork,
)
from lakehouse.control.state import (
    PAUSE_ANNOTATION,
    SECRET_NOT_READABLE,
    Act,
    Failure,
    Resource,
    Running,
    StoreState,
)

S = TypeVar("S")

BACKOFF_S = 5.0
"""Wait after the first failure of an action; a store that hiccups is back by then."""
BACKOFF_MAX_S = 600.0
"""Longest wait; it is reached with the eighth failure in a row."""
AGAIN_S = 1.0
"""After acting: soon enough that what was done is seen as done."""
WORKING_S = 10.0
"""While something long runs: how often its progress is told."""
UNREACHABLE_FROM_PODS = "UnreachableFromPods"
"""The reason where the store answers whoever decides, and not those that serve."""
UNREACHABLE_S = 10.0
"""While the store does not answer."""
DELETION_DEADLINE = timedelta(minutes=10)
"""Cleaning up that has not worked for so long is skipped, so that a namespace can always be deleted."""
DENIED_DEADLINE = timedelta(seconds=30)
"""The same where our right to read the credentials is gone: most often a namespace is going, and took it along."""


def backoff_s(attempts: int) -> float:
    """Seconds to wait after so many failures in a row: 5, 10, 20, … 600."""
    return min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** min(max(attempts, 1) - 1, 30))


def failure_of(failures: Sequence[Failure], act: Act, subject: str | None = None) -> Failure | None:
    """The failure of an act, of this subject where one is given."""
    for one in failures:
        if one.act is act and subject in (None, one.subject):
            return one
    return None


def held_s(failures: Sequence[Failure], action: Action, now: datetime) -> float:
    """Seconds until `action` may be tried again; 0 when it may be now."""
    failed = failure_of(failures, action.act, action.subject)
    return 0.0 if failed is None else _held_s(failed, now)


def _held_s(failed: Failure, now: datetime) -> float:
    if not failed.as_now:
        return 0.0
    wait = backoff_s(failed.attempts)
    # Never longer than the wait itself: the clock may have been set back since.
    return min(wait, max(0.0, wait - (now - failed.at).total_seconds()))


def replaceable(work: Running) -> bool:
    """Whether beginning it anew loses nothing and may help: it never ran, and would be made otherwise now."""
    return not work.started and not work.as_now


def waits(
    store: StoreState, work: Running | None, failures: Sequence[Failure], now: datetime
) -> list[float | None]:
    """When any kind is looked at again: after a failure's wait, while something runs, while the store is away."""
    held = [one for failed in failures if (one := _held_s(failed, now)) > 0]
    away = [] if store.reachable else [UNREACHABLE_S]
    return [*held, *away, *([WORKING_S] if work is not None else [])]


def storage(store: StoreState, cut_off: str = "") -> Condition:
    """Whether the store answers, whoever decides and whoever serves.

    `cut_off`: who of these it does not answer, and why.  That is told and holds nothing back: reads go on, and what
    whoever decides can do for the resource is done.
    """
    kind = ConditionType.STORAGE_REACHABLE
    if store.reachable is None:
        return conditions.unknown(kind, store.reason or "Pending", store.detail)
    if store.reachable and cut_off:
        return conditions.false(kind, UNREACHABLE_FROM_PODS, cut_off)
    if store.reachable:
        return conditions.true(kind, store.reason or "ProbeSucceeded", store.detail)
    return conditions.false(kind, store.reason or "NotReachable", store.detail)


def paused(resource: Resource[S]) -> Condition:
    """Whether nothing is done for a resource because somebody asked for that."""
    kind = ConditionType.RECONCILIATION_PAUSED
    if resource.meta.paused:
        return conditions.true(
            kind, "Paused", f"nothing is done until the annotation {PAUSE_ANNOTATION} goes"
        )
    return conditions.waiting(kind, "Active")


def plan(
    resource: Resource[S],
    fields: Mapping[str, Any],
    found: Sequence[Condition],
    actions: Sequence[Action],
    waits: Sequence[float | None],
    now: datetime,
    *,
    told: Sequence[Event] = (),
    failures: Sequence[Failure] = (),
) -> Plan:
    """One round's outcome; a field that is None is left out of the status.

    Beginning again what is among the `failures` is no news.  For a resource that is paused, nothing is done.
    """
    if resource.meta.paused and not resource.meta.deletion_requested:
        actions = ()
    old = resource.status.get("conditions", ())
    status = {
        "observedGeneration": resource.meta.generation,
        **{name: value for name, value in fields.items() if value is not None},
        "conditions": conditions.merged(old, found, generation=resource.meta.generation, now=now),
    }
    soon = [AGAIN_S] if actions else []
    times = [max(0.0, one) for one in (*soon, *waits) if one is not None]
    return Plan(
        status=status,
        actions=tuple(actions),
        events=(
            *told,
            *conditions.events(old, found),
            *(_started(one) for one in actions if _is_told(one) and not repeated(failures, one)),
        ),
        requeue_after_s=min(times, default=None),
        status_changed=status != resource.status,
    )


def troubled(resource: Resource[S], made: Plan, kind: ConditionType, message: str, now: datetime) -> Plan:
    """`made`, with what stood in the way of the cluster's objects told in a condition, unless that tells worse."""
    found = conditions.find(made.status, kind)
    worse = found.get("status") == conditions.Status.FALSE and str(found.get("reason", "")).endswith("Failed")
    if not found or worse:
        return made
    told = conditions.merged(
        resource.status.get("conditions", ()),
        [conditions.false(kind, "ApplyFailed", message)],
        generation=resource.meta.generation,
        now=now,
    )
    others = made.status["conditions"]
    status = {**made.status, "conditions": [told[0] if one is found else one for one in others]}
    return replace(made, status=status, status_changed=status != resource.status)


def repeated(failures: Sequence[Failure], action: Action) -> bool:
    """Whether an action is tried again after it failed."""
    return failure_of(failures, action.act, action.subject) is not None


def _is_told(action: Action) -> bool:
    return action.long or isinstance(action, (CreateSnapshotResource, DropIndex, DropDataset))


def _started(action: Action) -> Event:
    return Event(EventType.NORMAL, f"{action.act}Started", action.told)


def deletion(
    resource: Resource[S],
    *,
    cleanup: Action | None,
    wanted: bool,
    store: StoreState,
    failures: Sequence[Failure],
    working: bool,
    ready: ConditionType,
    now: datetime,
    in_use: bool = False,
    unreadable: str = "",
) -> Plan:
    """A round for a resource that is to go.

    `cleanup` is what is left to remove from the store, None for nothing; `wanted` says whether the store is to be
    cleaned up at all, and then it is waited for, but not past the deadline and not where it is gone.  While `in_use`,
    nothing of it is removed.  What is `unreadable` is left, for nobody knows whose it is, and that is told.
    """
    asked = resource.meta.deletion_requested_at or now
    patience = DENIED_DEADLINE if store.reason == SECRET_NOT_READABLE else DELETION_DEADLINE
    remaining = (asked + patience - now).total_seconds()
    tried = cleanup is not None and failure_of(failures, cleanup.act) is not None
    told: list[Event] = []
    actions: list[Action] = []
    waits: list[float | None] = []
    if working and remaining > 0:
        actions, waits = [StopWork()], [AGAIN_S]
    elif in_use and wanted and remaining > 0:
        waits = [min(remaining, WORKING_S)]
    elif not wanted or (store.reachable and cleanup is None):
        actions = [RemoveResource()]
        if wanted and unreadable:
            told = [
                Event(EventType.WARNING, "CleanupSkipped", f"the data was left where it is: {unreadable}")
            ]
    elif store.gone or (remaining <= 0 and (not store.reachable or tried)):
        actions = [RemoveResource()]
        told = [Event(EventType.WARNING, "CleanupSkipped", _skipped(store, failures))]
    elif store.reachable and cleanup is not None and not held_s(failures, cleanup, now):
        actions = [cleanup]
    else:
        held = held_s(failures, cleanup, now) if cleanup is not None else 0.0
        waits = [min(remaining, held or UNREACHABLE_S)]
    gone = conditions.waiting(ready, "Deleting", "the resource is being deleted")
    kept = [one for one in _kept(resource.status) if one.type is not ready]
    fields = {
        name: value
        for name, value in resource.status.items()
        if name not in ("conditions", "observedGeneration")
    }
    return plan(resource, fields, [*kept, gone], actions, waits, now, told=told, failures=failures)


def _skipped(store: StoreState, failures: Sequence[Failure]) -> str:
    why = store.detail or store.reason if not store.reachable else "; ".join(one.message for one in failures)
    return f"the data was left where it is: {why or 'it could not be removed in time'}"


def _kept(status: Mapping[str, Any]) -> list[Condition]:
    """As they were; what another version may have written is passed over."""
    return [
        Condition(
            ConditionType(one["type"]),
            conditions.Status(one["status"]),
            one["reason"],
            one.get("message", ""),
        )
        for one in status.get("conditions", ())
        if one["type"] in set(ConditionType) and one["status"] in set(conditions.Status)
    ]


def seconds_until(moment: datetime | None, now: datetime) -> float | None:
    """From `now`; not negative; None for none."""
    return None if moment is None else max(0.0, (moment - now).total_seconds())
