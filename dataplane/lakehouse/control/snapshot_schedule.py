"""Which snapshots of an index are to be made and which are to go.

The schedule's memory is the world itself: a firing is done when the IndexSnapshot that is named after it is there, so
whoever takes over knows what is missing.  One run makes up for all firings missed.  Retention counts successes only and
never removes the newest.  What this module does not do: take a snapshot; that is an IndexSnapshot's own round.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from lakehouse.control import checks, conditions, rounds, schedule
from lakehouse.control.conditions import Condition, ConditionType, false, true, unknown, waiting
from lakehouse.control.kinds import Retention, SnapshotSchedule, VectorIndexSpec
from lakehouse.control.plan import (
    SCHEDULED_DEADLINE_S,
    Action,
    CreateSnapshotResource,
    RetireSnapshot,
)
from lakehouse.control.state import Act, Failure, ObservedIndex, ObservedSnapshot, Resource, SnapshotState

_KIND = ConditionType.SNAPSHOT_CURRENT
FAILED_KEPT = 3
"""Failed scheduled snapshots that stay to be looked at, where there is a retention."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to make and remove, what to tell, and when to look again."""

    actions: tuple[Action, ...]
    condition: Condition
    status: dict[str, Any] = field(default_factory=dict)
    """`status.snapshot`."""
    waits: tuple[float | None, ...] = ()


def decide(resource: Resource[VectorIndexSpec], observed: ObservedIndex, now: datetime) -> Decision:
    """The snapshots' part of a round."""
    asked = resource.spec.snapshots
    seen = observed.snapshots
    status = _status(seen)
    if asked is None:
        return Decision((), unknown(_KIND, "NotConfigured", "no schedule is asked for"), status)
    if checks.problems(resource.spec):
        return Decision((), unknown(_KIND, "InvalidSpec"), status)
    kept, expires = _retained(resource.meta.name, asked.retention, seen, now)
    if asked.suspend or resource.spec.suspend:
        return Decision(kept, unknown(_KIND, "Suspended"), status, (expires,))
    owed = _owed(resource, asked, observed, now)
    upcoming = _since(resource, owed) or schedule.next_after(asked.schedule, asked.time_zone, now)
    status = status | {"nextScheduleTime": conditions.timestamp(upcoming)}
    made = _creation(resource, observed, owed)
    newest = schedule.latest_until(asked.schedule, asked.time_zone, now)
    taken = _taken(resource, observed, newest)
    found = (
        _current(resource, asked, seen, owed, now)
        if taken is None
        else false(_KIND, "NameTaken", taken.message)
    )
    return Decision((*made, *kept), found, status, (expires, rounds.seconds_until(upcoming, now) or None))


# ---- making ---------------------------------------------------------------------------------------------------------


def _owed(
    resource: Resource[VectorIndexSpec], asked: SnapshotSchedule, observed: ObservedIndex, now: datetime
) -> datetime | None:
    """The newest firing that is past and has no snapshot, if one is to be made for it."""
    newest = schedule.latest_until(asked.schedule, asked.time_zone, now)
    if _handled(resource, observed, newest):
        return None
    return newest if _counts(resource, asked, newest) else None


def _counts(resource: Resource[VectorIndexSpec], asked: SnapshotSchedule, firing: datetime) -> bool:
    """Whether a snapshot was to be made for a past firing: it is not from before the schedule, or what was done."""
    told = _told(resource)
    if told is None:
        return firing > resource.meta.created_at
    if not schedule.fires_at(asked.schedule, asked.time_zone, told):
        return False  # the schedule is another one since: it owes nothing yet
    return firing >= told


def _told(resource: Resource[VectorIndexSpec]) -> datetime | None:
    """The first firing that nothing was made for yet, be it past or to come, as the status says."""
    return conditions.moment(resource.status.get("snapshot", {}).get("nextScheduleTime"))


def _since(resource: Resource[VectorIndexSpec], owed: datetime | None) -> datetime | None:
    """The first of the firings that the one which is `owed` makes up for."""
    told = _told(resource)
    return owed if owed is None or told is None else min(told, owed)


def _handled(resource: Resource[VectorIndexSpec], observed: ObservedIndex, firing: datetime) -> bool:
    name = schedule.snapshot_name(resource.meta.name, firing)
    if _taken(resource, observed, firing) is not None:
        return True  # this firing is skipped, and the condition says so
    return any(
        one.name == name or (one.scheduled_for is not None and one.scheduled_for >= firing)
        for one in observed.snapshots
    )


def _taken(resource: Resource[VectorIndexSpec], observed: ObservedIndex, firing: datetime) -> Failure | None:
    """Told when something else has the name of a firing's snapshot."""
    name = schedule.snapshot_name(resource.meta.name, firing)
    failed = rounds.failure_of(observed.failures, Act.CREATE_SNAPSHOT_RESOURCE, name)
    return failed if failed is not None and failed.reason == "Conflict" else None


def _creation(
    resource: Resource[VectorIndexSpec], observed: ObservedIndex, owed: datetime | None
) -> tuple[Action, ...]:
    if owed is None or _is_unfinished(observed.snapshots) or not observed.serving:
        return ()
    name = resource.meta.name
    policy = resource.spec.deletion_policy
    return (CreateSnapshotResource(schedule.snapshot_name(name, owed), name, owed, policy),)


def _is_unfinished(seen: Sequence[ObservedSnapshot]) -> bool:
    """Whether a scheduled one is being taken, or waits for that."""
    return any(_scheduled(one) and not _final(one) for one in seen)


# ---- removing -------------------------------------------------------------------------------------------------------


def _retained(
    index: str, retention: Retention | None, seen: Sequence[ObservedSnapshot], now: datetime
) -> tuple[tuple[Action, ...], float | None]:
    """What retention removes, and in how many seconds it may remove more."""
    if retention is None:
        return (), None
    scheduled = [one for one in seen if _scheduled(one)]
    good = _newest_first(one for one in scheduled if one.state is SnapshotState.SUCCEEDED)
    bad = _newest_first(one for one in scheduled if one.state is SnapshotState.FAILED and not one.name_taken)
    # With keepWithin alone every older one goes but the newest; with keepLast alone every one after the last of them.
    least = max(retention.keep_last or 0, 1)
    within = retention.keep_within or timedelta()
    older = [*good[least:], *(one for one in bad if len(good) >= least and _is_emptied(one, good[least - 1]))]
    young = [one for one in older if _finished(one) + within > now]
    gone = [one for one in older if one not in young]
    gone += [one for one in bad[FAILED_KEPT:] if one not in older]
    ends = [rounds.seconds_until(_finished(one) + within, now) for one in young]
    removable = (one for one in gone if not one.in_use)
    return tuple(RetireSnapshot(index, one.name) for one in removable), min(filter(None, ends), default=None)


def _is_emptied(failed: ObservedSnapshot, last: ObservedSnapshot) -> bool:
    """Whether it was complete and is older than the `last` that counts: retiring it was cut off after its files."""
    before = (failed.scheduled_for, failed.name) < (last.scheduled_for, last.name)
    return failed.completed_at is not None and before


def _newest_first(snapshots: Any) -> list[ObservedSnapshot]:
    return sorted(snapshots, key=lambda one: (one.scheduled_for, one.name), reverse=True)


def _scheduled(one: ObservedSnapshot) -> bool:
    return one.scheduled_for is not None and not one.deleting


def _final(one: ObservedSnapshot) -> bool:
    return one.state in (SnapshotState.SUCCEEDED, SnapshotState.FAILED)


def _finished(one: ObservedSnapshot) -> datetime:
    return one.completed_at or one.created_at


# ---- telling --------------------------------------------------------------------------------------------------------


def _last_successful(seen: Sequence[ObservedSnapshot]) -> ObservedSnapshot | None:
    good = [one for one in seen if one.state is SnapshotState.SUCCEEDED and not one.deleting]
    return max(good, key=lambda one: (_finished(one), one.name), default=None)


def _failures_since(
    seen: Sequence[ObservedSnapshot], last: ObservedSnapshot | None
) -> list[ObservedSnapshot]:
    failed = [one for one in seen if one.state is SnapshotState.FAILED and _scheduled(one)]
    return [one for one in failed if last is None or one.created_at > last.created_at]


def _status(seen: Sequence[ObservedSnapshot]) -> dict[str, Any]:
    last = _last_successful(seen)
    failures = len(_failures_since(seen, last))
    if last is None:
        return {"consecutiveFailures": failures} if failures else {}
    told = {"name": last.name, "uri": last.uri, "position": last.position, "digest": last.digest}
    when = {"completedAt": conditions.timestamp(_finished(last))}
    kept = {name: value for name, value in told.items() if value}
    return {"lastSuccessful": kept | when, "consecutiveFailures": failures}


def _current(
    resource: Resource[VectorIndexSpec],
    asked: SnapshotSchedule,
    seen: Sequence[ObservedSnapshot],
    owed: datetime | None,
    now: datetime,
) -> Condition:
    last = _last_successful(seen)
    failures = _failures_since(seen, last)
    if failures:
        newest = max(failures, key=lambda one: one.created_at)
        return false(
            _KIND, "LastFailed", f"{newest.name}: {newest.message}" if newest.message else newest.name
        )
    # A firing may take as long as its deadline before it is missed.
    expected = schedule.latest_until(
        asked.schedule, asked.time_zone, now - timedelta(seconds=SCHEDULED_DEADLINE_S)
    )
    missed = _counts(resource, asked, expected)
    if owed is not None or _is_unfinished(seen):  # until one is whole nothing has been made up for
        missed |= conditions.find(resource.status, _KIND).get("reason") == "Overdue"
    if last is None:
        if missed:
            return false(
                _KIND, "Overdue", f"none has been taken, and one was due at {conditions.timestamp(expected)}"
            )
        return waiting(_KIND, "NeverTaken", "the first one is not due yet")
    covered = max(one for one in (last.scheduled_for, last.completed_at, last.created_at) if one is not None)
    if covered < expected and missed:
        return false(_KIND, "Overdue", f"one was due at {conditions.timestamp(expected)}")
    return true(_KIND, "WithinSchedule", last.name)
