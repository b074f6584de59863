"""What is decided about snapshots: one IndexSnapshot's life, and the schedule and retention of an index."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from control_samples import (
    NOW,
    SNAPSHOTS,
    after,
    ago,
    condition,
    decide,
    failure,
    index,
    isnap,
    message,
    meta,
    running,
    seen,
    snap,
)
from lakehouse.control import facts, index_snapshot, rounds
from lakehouse.control.conditions import SNAPSHOT_CONDITIONS, ConditionType
from lakehouse.control.plan import (
    CreateSnapshotResource,
    DeleteSnapshotFiles,
    EventType,
    Plan,
    RemoveResource,
    RetireSnapshot,
    StopWork,
    TakeSnapshot,
)
from lakehouse.control.state import (
    ADOPT_ANNOTATION,
    PAUSE_ANNOTATION,
    REACHABLE,
    Meta,
    ObservedIndexSnapshot,
    ObservedSnapshot,
    SnapshotRecord,
    SnapshotState,
    StoreState,
)

C = ConditionType
SERVED = ObservedIndexSnapshot(REACHABLE, index_exists=True, index_serving=True)
RECORD = SnapshotRecord("s3://b/_vectors/products/x", "sha", "p7", 7, 700, ago(seconds=5))
WHOLE = replace(SERVED, record=RECORD)
TAKE = TakeSnapshot("products", "nightly", 540.0)
DOWN = StoreState(False, "Timeout", "no answer")
SIX = datetime(2026, 5, 4, 6, tzinfo=UTC)
NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


# ---- one snapshot ---------------------------------------------------------------------------------------------------


def test_the_first_look_sets_every_condition() -> None:
    made = snap(isnap(), ObservedIndexSnapshot(StoreState(None)))
    assert [one["type"] for one in made.status["conditions"]] == list(SNAPSHOT_CONDITIONS)
    assert made.actions == ()


def test_it_is_taken_once_the_index_answers() -> None:
    missing = snap(isnap(), ObservedIndexSnapshot(REACHABLE))
    assert (missing.actions, condition(missing, C.COMPLETE)) == ((), ("Unknown", "Pending"))
    assert "no such VectorIndex" in message(missing, C.COMPLETE)
    starting = snap(isnap(), replace(SERVED, index_serving=False))
    assert starting.actions == ()
    assert snap(isnap(), SERVED).actions == (TAKE,)


def test_it_is_not_taken_twice_and_tells_what_it_is() -> None:
    resource = isnap()
    busy = snap(resource, replace(SERVED, work=running(TAKE)))
    assert (busy.actions, condition(busy, C.COMPLETE)) == ((), ("Unknown", "Running"))
    assert busy.status["startedAt"] == "2026-05-04T11:59:30Z"
    done = snap(after(resource, busy), WHOLE)
    status = dict(done.status)
    del status["conditions"]
    assert status == {
        "observedGeneration": 1,
        "uri": RECORD.uri,
        "digest": "sha",
        "position": "p7",
        "items": 7,
        "size": 700,
        "startedAt": "2026-05-04T11:59:30Z",
        "completedAt": "2026-05-04T12:00:25Z",
    }
    assert (done.actions, done.requeue_after_s) == ((), None)
    again = snap(after(resource, done), WHOLE, NOW + timedelta(days=1))
    assert (again.actions, again.status_changed, again.events) == ((), False, ())


def test_a_failure_is_retried_within_the_deadline_and_final_after_it() -> None:
    resource = isnap()
    failed = failure(TAKE, at=NOW, message="the bucket is full")
    waits = snap(resource, replace(SERVED, failures=(failed,)))
    assert (waits.actions, waits.requeue_after_s) == ((), 5)
    assert condition(waits, C.COMPLETE) == ("False", "Retrying")
    assert snap(resource, replace(SERVED, failures=(failed,)), NOW + timedelta(seconds=5)).actions != ()
    late = snap(resource, replace(SERVED, failures=(failed,)), NOW + timedelta(minutes=9))
    assert (late.actions, late.requeue_after_s) == ((), None)
    assert condition(late, C.COMPLETE) == ("False", "DeadlineExceeded")
    assert "the bucket is full" in message(late, C.COMPLETE)
    assert [(one.type, one.reason) for one in late.events] == [(EventType.WARNING, "DeadlineExceeded")]
    after_restart = snap(after(resource, late), SERVED, NOW + timedelta(days=1))
    assert (after_restart.actions, after_restart.status_changed) == ((), False)


def test_a_worker_that_died_cannot_leave_it_running_for_ever() -> None:
    late = snap(isnap(), replace(SERVED, work=running(TAKE)), NOW + timedelta(minutes=10))
    assert late.actions == (StopWork(),)
    assert condition(late, C.COMPLETE) == ("False", "DeadlineExceeded")


def test_one_that_was_whole_after_all_is_complete_however_late() -> None:
    late = snap(isnap(), SERVED, NOW + timedelta(minutes=10))
    found = snap(after(isnap(), late), WHOLE, NOW + timedelta(minutes=11))
    assert condition(found, C.COMPLETE) == ("True", "Verified")


def test_files_that_vanish_are_told_of_and_not_taken_again() -> None:
    resource = isnap()
    resource = after(resource, snap(resource, WHOLE))
    blind = snap(resource, ObservedIndexSnapshot(DOWN))
    assert condition(blind, C.COMPLETE) == ("True", "Verified")
    gone = snap(resource, SERVED)
    assert (gone.actions, condition(gone, C.COMPLETE)) == ((), ("False", "FilesGone"))
    assert gone.status["uri"] == RECORD.uri
    assert snap(after(resource, gone), SERVED).status_changed is False


def test_where_it_stands_is_read_from_its_status() -> None:
    resource = isnap()
    assert index_snapshot.state_of({}) is SnapshotState.PENDING
    assert index_snapshot.state_of(snap(resource, SERVED).status) is SnapshotState.PENDING
    busy = snap(resource, replace(SERVED, work=running(TAKE)))
    assert index_snapshot.state_of(busy.status) is SnapshotState.RUNNING
    assert index_snapshot.state_of(snap(resource, WHOLE).status) is SnapshotState.SUCCEEDED
    late = snap(resource, SERVED, NOW + timedelta(minutes=10))
    assert index_snapshot.state_of(late.status) is SnapshotState.FAILED


def test_deletion_keeps_the_files_or_removes_them_but_not_under_a_restore() -> None:
    going = meta("nightly", deletion_requested_at=ago(seconds=1))
    assert snap(isnap(of=going), WHOLE).actions == (RemoveResource(),)
    assert snap(isnap(of=going), replace(WHOLE, in_use=True)).actions == (RemoveResource(),)
    resource = isnap(of=going, deletionPolicy="Delete")
    assert snap(resource, WHOLE).actions == (DeleteSnapshotFiles("products", "nightly"),)
    assert snap(resource, replace(WHOLE, in_use=True)).actions == ()
    assert snap(resource, SERVED).actions == (RemoveResource(),)
    assert snap(resource, ObservedIndexSnapshot(DOWN)).actions == ()
    assert snap(resource, ObservedIndexSnapshot(DOWN), NOW + rounds.DELETION_DEADLINE).actions == (
        RemoveResource(),
    )


def test_files_of_attempts_go_too_and_so_does_what_no_record_tells_of() -> None:
    going = meta("nightly", deletion_requested_at=ago(seconds=1))
    left = replace(SERVED, left_behind=True)
    begun = isnap({"startedAt": "2026-05-04T11:59:30Z"}, of=going, deletionPolicy="Delete")
    assert snap(begun, left).actions == (DeleteSnapshotFiles("products", "nightly"),)
    assert snap(begun, replace(left, work=running(TAKE))).actions == (StopWork(),)
    assert snap(begun, SERVED).actions == (RemoveResource(),)
    never = isnap(of=going, deletionPolicy="Delete")  # what is there was left by another of that name
    assert snap(never, left).actions == (RemoveResource(),)


def test_the_deletion_policy_that_counts_is_the_one_it_has_when_it_goes() -> None:
    resource = isnap()
    status = snap(resource, WHOLE).status
    going = meta("nightly", generation=2, deletion_requested_at=ago(seconds=1))
    kept = isnap(status, of=going, deletionPolicy="Retain")
    assert snap(kept, WHOLE).actions == (RemoveResource(),)
    removed = isnap(status, of=going, deletionPolicy="Delete")
    assert snap(removed, WHOLE).actions == (DeleteSnapshotFiles("products", "nightly"),)
    changed = isnap(status, of=meta("nightly", generation=2), deletionPolicy="Delete")
    made = snap(changed, WHOLE)
    assert (made.actions, condition(made, C.COMPLETE)) == ((), ("True", "Verified"))
    assert made.status["observedGeneration"] == 2


# ---- another snapshot of that name ----------------------------------------------------------------------------------

OLD = replace(RECORD, completed_at=ago(days=3))
BEFORE = replace(SERVED, record=OLD)
ADOPTING = meta("nightly", created_at=ago(minutes=1), annotations={ADOPT_ANNOTATION: "true"})


def test_a_snapshot_from_before_it_was_asked_for_is_not_taken_for_it() -> None:
    resource = isnap()
    made = snap(resource, BEFORE)
    assert (made.actions, made.requeue_after_s) == ((), None)
    assert condition(made, C.COMPLETE) == ("False", "NameTaken")
    assert "2026-05-01T12:00:30Z" in message(made, C.COMPLETE)
    assert ADOPT_ANNOTATION in message(made, C.COMPLETE)
    assert [(one.type, one.reason) for one in made.events] == [(EventType.WARNING, "NameTaken")]
    assert set(made.status) == {"observedGeneration", "conditions"}
    assert index_snapshot.state_of(made.status) is SnapshotState.FAILED
    assert facts.snapshot(replace(resource, status=made.status), in_use=False).name_taken
    again = snap(after(resource, made), BEFORE, NOW + timedelta(days=1))
    assert (again.actions, again.status_changed, again.events) == ((), False, ())
    blind = snap(after(resource, made), ObservedIndexSnapshot(DOWN))
    assert condition(blind, C.COMPLETE) == ("False", "NameTaken")


def test_one_whose_time_nobody_knows_is_not_taken_for_it_either() -> None:
    made = snap(isnap(), replace(SERVED, record=replace(RECORD, completed_at=None)))
    assert condition(made, C.COMPLETE) == ("False", "NameTaken")
    assert "at an unknown time" in message(made, C.COMPLETE)


def test_an_adopted_one_is_complete_with_the_time_it_was_taken_and_stays_so() -> None:
    adopting = isnap(of=ADOPTING)
    made = snap(after(adopting, snap(isnap(), BEFORE)), BEFORE)
    assert condition(made, C.COMPLETE) == ("True", "Verified")
    assert (made.status["completedAt"], made.status["uri"]) == ("2026-05-01T12:00:30Z", OLD.uri)
    assert "startedAt" not in made.status
    off = snap(isnap(made.status), BEFORE)
    assert condition(off, C.COMPLETE) == ("True", "Verified")


def test_the_name_is_free_again_once_the_other_snapshot_is_gone() -> None:
    resource = after(isnap(), snap(isnap(), BEFORE))
    assert snap(resource, SERVED).actions == (TAKE,)


def test_what_it_began_is_its_whatever_the_clocks_say() -> None:
    resource = isnap()
    begun = snap(resource, SERVED)
    assert (begun.actions, begun.status["startedAt"]) == ((TAKE,), "2026-05-04T12:00:30Z")
    assert condition(snap(after(resource, begun), BEFORE), C.COMPLETE) == ("True", "Verified")
    near = replace(SERVED, record=replace(RECORD, completed_at=ago(minutes=2)))
    assert condition(snap(resource, near), C.COMPLETE) == ("True", "Verified")
    far = replace(SERVED, record=replace(RECORD, completed_at=ago(minutes=2, seconds=1)))
    assert condition(snap(resource, far), C.COMPLETE) == ("False", "NameTaken")


def test_one_that_is_paused_or_waits_has_not_begun() -> None:
    paused = isnap(of=meta("nightly", created_at=ago(minutes=1), annotations={PAUSE_ANNOTATION: "true"}))
    assert "startedAt" not in snap(paused, SERVED).status
    assert "startedAt" not in snap(isnap(), replace(SERVED, index_serving=False)).status


def test_a_time_that_nobody_knows_is_not_made_up() -> None:
    resource = isnap({"startedAt": "2026-05-04T11:59:30Z"})
    made = snap(resource, replace(SERVED, record=replace(RECORD, completed_at=None)))
    assert condition(made, C.COMPLETE) == ("True", "Verified")
    assert "completedAt" not in made.status


def test_deleting_one_whose_name_was_taken_leaves_the_other_alone() -> None:
    going = meta("nightly", created_at=ago(minutes=1), deletion_requested_at=ago(seconds=1))
    resource = isnap(snap(isnap(), BEFORE).status, of=going, deletionPolicy="Delete")
    assert snap(resource, BEFORE).actions == (RemoveResource(),)


# ---- who still needs one --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [{"name": "nightly"}, {"uri": RECORD.uri}])
def test_an_index_awaits_the_snapshot_that_it_is_not_restored_from_yet(asked: dict[str, str]) -> None:
    whole = after(isnap(), snap(isnap(), WHOLE))
    wanted: dict[str, Any] = {"bootstrap": {"snapshot": asked}}

    def awaits(*told: str, of: Meta | None = None, **more: Any) -> bool:
        status = {"conditions": [dict(zip(("type", "status", "reason"), told, strict=True))]} if told else {}
        return index_snapshot.is_awaited(whole, index(status, of=of, **wanted, **more))

    assert awaits()
    assert awaits("Restored", "False", "RestoreFailed")
    assert awaits("Restored", "Unknown", "InProgress")
    assert not awaits("Restored", "True", "Verified")
    assert not awaits("Restored", "False", "NotEmpty")
    assert not awaits(suspend=True)
    assert not awaits(of=meta("b", deletion_requested_at=ago(seconds=1)))
    assert not index_snapshot.is_awaited(whole, index())
    other: dict[str, Any] = {"bootstrap": {"snapshot": {"name": "other"}}}
    assert not index_snapshot.is_awaited(whole, index(**other))


# ---- the schedule ---------------------------------------------------------------------------------------------------


def taken(at: datetime, how: SnapshotState = SnapshotState.SUCCEEDED, **changes: Any) -> ObservedSnapshot:
    """A scheduled snapshot that ended a minute after its time."""
    name = f"products-{at:%Y%m%d%H%M%S}"
    ended = at + timedelta(minutes=1) if how is SnapshotState.SUCCEEDED else None
    usual = ObservedSnapshot(
        name, how, at + timedelta(seconds=1), ended, at, uri=f"s3://b/{name}", digest="d", position="p"
    )
    return replace(usual, **changes)


def scheduled(made: Plan) -> list[str]:
    return [one.name for one in made.actions if isinstance(one, CreateSnapshotResource)]


def test_a_snapshot_that_is_due_is_asked_for_under_a_name_made_of_its_time() -> None:
    made = decide(index(snapshots=SNAPSHOTS), seen(snapshots=(taken(SIX),)))
    (action,) = made.actions
    assert isinstance(action, CreateSnapshotResource)
    assert action.name == "products-20260504120000"
    assert action.document() == {
        "apiVersion": "lakehouse.agentview.dev/v1alpha1",
        "kind": "IndexSnapshot",
        "metadata": {
            "name": "products-20260504120000",
            "labels": {"lakehouse.agentview.dev/index": "products"},
            "annotations": {"lakehouse.agentview.dev/scheduled-for": "2026-05-04T12:00:00Z"},
        },
        "spec": {"indexRef": {"name": "products"}, "deadlineSeconds": 600, "deletionPolicy": "Retain"},
    }
    # Until it is seen, it is owed: a crash right here loses nothing.
    assert made.status["snapshot"]["nextScheduleTime"] == "2026-05-04T12:00:00Z"


def test_a_scheduled_snapshot_stays_or_goes_as_its_index_does() -> None:
    for policy in ("Retain", "Delete"):
        (action,) = decide(index(snapshots=SNAPSHOTS, deletionPolicy=policy), seen()).actions
        assert isinstance(action, CreateSnapshotResource)
        assert action.document()["spec"]["deletionPolicy"] == policy


def test_one_that_is_there_is_not_made_again() -> None:
    resource = index(snapshots=SNAPSHOTS)
    made = decide(resource, seen(snapshots=(taken(SIX), taken(NOON, SnapshotState.PENDING))))
    assert made.actions == ()
    assert made.status["snapshot"]["nextScheduleTime"] == "2026-05-04T18:00:00Z"
    assert made.requeue_after_s == pytest.approx(21_570)
    # Somebody deleted it since: the status still knows.
    assert decide(after(resource, made), seen(snapshots=(taken(SIX),))).actions == ()


def test_downtime_is_made_up_for_by_one_run() -> None:
    resource = index(snapshots=SNAPSHOTS)
    resource = after(resource, decide(resource, seen(snapshots=(taken(SIX), taken(NOON)))))
    made = decide(resource, seen(snapshots=(taken(SIX), taken(NOON))), NOW + timedelta(days=9))
    assert scheduled(made) == ["products-20260513120000"]
    assert condition(made, C.SNAPSHOT_CURRENT) == ("False", "Overdue")


def test_a_new_index_owes_no_snapshot_from_before_it_was_there() -> None:
    made = decide(index(of=meta(created_at=ago(seconds=10)), snapshots=SNAPSHOTS), seen())
    assert made.actions == ()
    assert condition(made, C.SNAPSHOT_CURRENT) == ("False", "NeverTaken")
    assert made.status["snapshot"]["nextScheduleTime"] == "2026-05-04T18:00:00Z"


def test_another_schedule_owes_nothing_from_before() -> None:
    old = index(snapshots=SNAPSHOTS)
    status = decide(old, seen(snapshots=(taken(NOON),))).status
    changed = index(status, snapshots={"schedule": "0 7 * * *"})
    made = decide(changed, seen(snapshots=(taken(SIX),)))
    assert made.actions == ()
    assert made.status["snapshot"]["nextScheduleTime"] == "2026-05-05T07:00:00Z"


def test_another_schedule_has_missed_nothing_from_before() -> None:
    old = index(snapshots=SNAPSHOTS)
    good = (taken(SIX - timedelta(hours=6)), taken(SIX))
    changed = index(
        decide(old, seen(snapshots=good), NOON - timedelta(minutes=1)).status,
        snapshots={"schedule": "0 7 * * *"},
    )
    for minutes in (0, 20, 18 * 60 + 59):
        made = decide(changed, seen(snapshots=good), NOW + timedelta(minutes=minutes))
        assert (made.actions, condition(made, C.SNAPSHOT_CURRENT)) == ((), ("True", "WithinSchedule"))
        assert [one for one in made.events if one.type is EventType.WARNING] == []
        changed = after(changed, made)
    seven = SIX + timedelta(days=1, hours=1)
    for minutes, current in ((0, "True"), (9, "True"), (11, "False"), (24 * 60 + 1, "False")):
        made = decide(changed, seen(snapshots=good, serving=False), seven + timedelta(minutes=minutes))
        assert condition(made, C.SNAPSHOT_CURRENT)[0] == current
        changed = after(changed, made)


def test_a_missed_one_stays_missed_while_others_fall_due_and_until_one_is_whole() -> None:
    often = {"schedule": "*/5 * * * *"}
    resource = index(snapshots=often)
    last = taken(NOON)
    resource = after(resource, decide(resource, seen(snapshots=(last,))))
    told = []
    for minutes in range(1, 40):
        at = NOW + timedelta(minutes=minutes)
        made = decide(resource, seen(snapshots=(last,), serving=False), at)
        told.append(condition(made, C.SNAPSHOT_CURRENT)[1])
        resource = after(resource, made)
    assert told == ["WithinSchedule"] * told.index("Overdue") + ["Overdue"] * (39 - told.index("Overdue"))
    assert told.index("Overdue") < 16
    at = NOW + timedelta(minutes=40)
    made = decide(resource, seen(snapshots=(last,)), at)
    assert scheduled(made) == ["products-20260504124000"]
    busy = taken(NOON + timedelta(minutes=40), SnapshotState.RUNNING)
    for _ in range(2):
        made = decide(after(resource, made), seen(snapshots=(last, busy)), at)
        assert condition(made, C.SNAPSHOT_CURRENT) == ("False", "Overdue")
    whole = taken(NOON + timedelta(minutes=40))
    made = decide(after(resource, made), seen(snapshots=(last, whole)), at)
    assert condition(made, C.SNAPSHOT_CURRENT) == ("True", "WithinSchedule")


def test_none_is_asked_for_while_one_is_being_taken_or_nobody_serves() -> None:
    resource = index(snapshots=SNAPSHOTS)
    assert decide(resource, seen(snapshots=(taken(SIX, SnapshotState.RUNNING),))).actions == ()
    assert decide(resource, seen(snapshots=(taken(SIX),), serving=False)).actions == ()
    made = decide(index(snapshots={**SNAPSHOTS, "suspend": True}), seen(snapshots=(taken(SIX),)))
    assert (made.actions, condition(made, C.SNAPSHOT_CURRENT)) == ((), ("Unknown", "Suspended"))
    assert "nextScheduleTime" not in made.status["snapshot"]


def test_a_name_that_something_else_has_skips_that_firing() -> None:
    resource = index(snapshots=SNAPSHOTS)
    (action,) = decide(resource, seen(snapshots=(taken(SIX),))).actions
    made = decide(resource, seen(snapshots=(taken(SIX),), failures=(failure(action, "Conflict"),)))
    assert made.actions == ()
    assert made.status["snapshot"]["nextScheduleTime"] == "2026-05-04T18:00:00Z"
    assert condition(made, C.SNAPSHOT_CURRENT) == ("False", "NameTaken")
    broken = decide(resource, seen(snapshots=(taken(SIX),), failures=(failure(action, "Unavailable"),)))
    assert broken.status["snapshot"]["nextScheduleTime"] == "2026-05-04T12:00:00Z"


def test_the_schedule_is_in_its_time_zone() -> None:
    made = decide(index(snapshots={"schedule": "30 13 * * *", "timeZone": "Europe/Stockholm"}), seen())
    assert scheduled(made) == ["products-20260504113000"]


# ---- what is told ---------------------------------------------------------------------------------------------------


def told(*snapshots: ObservedSnapshot, now: datetime = NOW) -> tuple[str, str]:
    made = decide(index(snapshots=SNAPSHOTS), seen(snapshots=snapshots), now)
    return condition(made, C.SNAPSHOT_CURRENT)


def test_whether_snapshots_are_current() -> None:
    assert condition(decide(index(), seen()), C.SNAPSHOT_CURRENT) == ("Unknown", "NotConfigured")
    assert told(taken(NOON)) == ("True", "WithinSchedule")
    assert told(taken(SIX)) == ("True", "WithinSchedule")  # noon's still has its deadline
    assert told(taken(SIX), now=NOON + timedelta(minutes=11)) == ("False", "Overdue")
    assert told() == ("False", "Overdue")
    assert told(taken(SIX), taken(NOON, SnapshotState.FAILED)) == ("False", "LastFailed")
    assert told(taken(SIX, SnapshotState.FAILED), taken(NOON)) == ("True", "WithinSchedule")
    assert told(taken(SIX), taken(NOON, SnapshotState.PENDING)) == ("True", "WithinSchedule")
    personal = taken(NOON, SnapshotState.FAILED, scheduled_for=None)
    assert told(taken(SIX), personal) == ("True", "WithinSchedule")


def test_the_status_names_the_newest_success_and_counts_failures_since() -> None:
    eighteen, midnight = NOON - timedelta(hours=18), NOON - timedelta(hours=12)
    made = decide(
        index(snapshots=SNAPSHOTS),
        seen(
            snapshots=(
                taken(eighteen, SnapshotState.FAILED),
                taken(midnight),
                taken(SIX, SnapshotState.FAILED),
                taken(NOON, SnapshotState.FAILED),
            )
        ),
    )
    assert made.status["snapshot"] == {
        "lastSuccessful": {
            "name": "products-20260504000000",
            "uri": "s3://b/products-20260504000000",
            "position": "p",
            "digest": "d",
            "completedAt": "2026-05-04T00:01:00Z",
        },
        "consecutiveFailures": 2,
        "nextScheduleTime": "2026-05-04T18:00:00Z",
    }


# ---- retention ------------------------------------------------------------------------------------------------------


def removed(retention: dict[str, Any], *snapshots: ObservedSnapshot) -> list[str]:
    made = decide(index(snapshots={**SNAPSHOTS, "retention": retention}), seen(snapshots=snapshots))
    return [one.name[-10:-4] for one in made.actions if isinstance(one, RetireSnapshot)]


def days(*numbers: int, how: SnapshotState = SnapshotState.SUCCEEDED) -> list[ObservedSnapshot]:
    return [taken(NOON - timedelta(days=one), how) for one in numbers]


def test_the_last_few_stay() -> None:
    assert removed({"keepLast": 2}, *days(0, 1, 2, 3)) == ["050212", "050112"]
    assert removed({"keepLast": 9}, *days(0, 1, 2, 3)) == []


def test_the_young_stay() -> None:
    assert removed({"keepWithin": "36h"}, *days(0, 1, 2, 3)) == ["050212", "050112"]


def test_what_either_rule_keeps_stays() -> None:
    assert removed({"keepLast": 1, "keepWithin": "60h"}, *days(0, 1, 2, 3)) == ["050112"]
    assert removed({"keepLast": 3, "keepWithin": "1h"}, *days(0, 1, 2, 3)) == ["050112"]


def test_the_newest_success_stays_however_old_it_is() -> None:
    assert removed({"keepWithin": "1h"}, *days(30, 31)) == ["040312"]
    recent = days(0, 1, 2, how=SnapshotState.FAILED)
    assert removed({"keepLast": 1}, *recent, *days(30)) == []


def test_failures_do_not_count_and_do_not_pile_up() -> None:
    failed = days(0, 1, 2, 3, 4, how=SnapshotState.FAILED)
    assert removed({"keepLast": 1}, *failed, *days(5)) == ["050112", "043012"]


def test_one_whose_name_another_has_is_left_for_a_person_to_adopt() -> None:
    theirs = [replace(one, name_taken=True) for one in days(1, 2, 3, 4, how=SnapshotState.FAILED)]
    assert removed({"keepLast": 1}, *days(0), *theirs) == []


def test_one_whose_files_were_retired_before_a_crash_is_retired_again_and_one_that_lost_them_stays() -> None:
    def emptied(days_ago: int) -> ObservedSnapshot:
        at = NOON - timedelta(days=days_ago)
        return taken(at, SnapshotState.FAILED, completed_at=at + timedelta(minutes=1))

    assert removed({"keepLast": 2}, *days(0, 1), emptied(2)) == ["050212"]
    assert removed({"keepLast": 2}, *days(0, 2), emptied(1)) == []
    assert removed({"keepLast": 2}, *days(0), emptied(1)) == []


def test_what_is_running_in_use_or_made_by_a_person_stays() -> None:
    busy = taken(NOON - timedelta(days=8), SnapshotState.RUNNING)
    used = taken(NOON - timedelta(days=9), in_use=True)
    personal = taken(NOON - timedelta(days=10), scheduled_for=None)
    going = taken(NOON - timedelta(days=11), deleting=True)
    assert removed({"keepLast": 1}, *days(0), busy, used, personal, going) == []


def test_without_rules_everything_stays_and_a_suspended_schedule_still_retires() -> None:
    many = days(*range(50))
    assert decide(index(snapshots=SNAPSHOTS), seen(snapshots=tuple(many))).actions == ()
    suspended = index(snapshots={**SNAPSHOTS, "suspend": True, "retention": {"keepLast": 1}})
    assert len(decide(suspended, seen(snapshots=tuple(days(0, 1)))).actions) == 1


def test_the_next_look_is_when_one_grows_old() -> None:
    made = decide(
        index(snapshots={**SNAPSHOTS, "retention": {"keepWithin": "25h"}}), seen(snapshots=tuple(days(0, 1)))
    )
    assert made.requeue_after_s == pytest.approx(3_630)
