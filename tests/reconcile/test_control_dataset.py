"""What is decided for a Dataset, rule by rule."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from control_samples import (
    NOW,
    after,
    ago,
    condition,
    failure,
    files,
    ingested,
    message,
    meta,
    refresh,
    refreshed,
    running,
    version,
)
from lakehouse.control import dataset, rounds
from lakehouse.control.conditions import DATASET_CONDITIONS, ConditionType
from lakehouse.control.kinds import DatasetSpec
from lakehouse.control.plan import DropDataset, EventType, Ingest, RemoveResource, RetireVersions, StopWork
from lakehouse.control.state import (
    PAUSE_ANNOTATION,
    REACHABLE,
    REFRESH_ANNOTATION,
    ObservedDataset,
    RefreshResult,
    Resource,
    StoreState,
)

C = ConditionType
EMPTY = ObservedDataset(REACHABLE)
DOWN = StoreState(False, "AccessDenied", "the key was refused")
HOURLY = {"schedule": "15 * * * *"}


def ingest(resource: Resource[DatasetSpec]) -> Ingest:
    return Ingest(dataset.refresh_key(resource.spec, resource.meta))


def test_the_first_look_sets_every_condition() -> None:
    made = refresh(files(), ObservedDataset(StoreState(None)))
    assert [one["type"] for one in made.status["conditions"]] == list(DATASET_CONDITIONS)
    assert made.actions == ()


def test_a_new_dataset_is_ingested_at_once() -> None:
    resource = files()
    made = refresh(resource, EMPTY)
    assert made.actions == (ingest(resource),)
    assert condition(made, C.READY) == ("False", "Pending")
    assert condition(made, C.FRESH) == ("False", "Pending")
    assert condition(made, C.SCHEMA_COMPATIBLE) == ("Unknown", "Pending")


def test_a_refresh_in_flight_is_not_started_again() -> None:
    resource = files()
    made = refresh(resource, replace(EMPTY, work=running(ingest(resource))))
    assert (made.actions, made.requeue_after_s) == ((), rounds.WORKING_S)
    assert condition(made, C.FRESH) == ("False", "Refreshing")
    assert message(made, C.READY) == "10 of 20 items"


def test_what_is_as_asked_for_is_left_alone_also_after_a_restart() -> None:
    resource = files()
    first = refresh(resource, ingested(resource))
    assert (first.actions, first.requeue_after_s) == ((), None)
    restarted = refresh(
        after(resource, first), ingested(resource, last_refresh=None), NOW + timedelta(days=1)
    )
    assert (restarted.actions, restarted.status_changed, restarted.events) == ((), False, ())


def test_the_status_has_what_was_seen_and_nothing_else() -> None:
    resource = files(refresh=HOURLY)
    done = refreshed(resource, started_at=ago(minutes=10), completed_at=ago(minutes=9), rejected=3)
    status = dict(refresh(resource, ingested(resource, last_refresh=done)).status)
    del status["conditions"]
    assert status == {
        "observedGeneration": 1,
        "current": {
            "version": 1,
            "manifest": "_catalog/manifests/catalog/00000000000000000001.json",
            "schemaFingerprint": "f" * 64,
            "rows": 10,
            "bytes": 100,
            "files": 1,
            "publishedAt": "2026-05-04T11:00:30Z",
        },
        "lastRefresh": {
            "key": ingest(resource).key,
            "startedAt": "2026-05-04T11:50:30Z",
            "completedAt": "2026-05-04T11:51:30Z",
            "result": "Published",
            "version": 1,
            "rejected": 3,
        },
        "nextRefreshTime": "2026-05-04T12:15:00Z",
        "consecutiveFailures": 0,
    }


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"sources": [{"uri": "s3://raw/b.csv"}]}, True),
        ({"sources": [{"uri": "s3://raw/a.csv", "options": {"delim": ";"}}]}, True),
        ({"transform": {"sql": "SELECT 1"}}, True),
        ({"mode": "Append"}, True),
        ({"schema": {"policy": "Any"}}, True),
        ({"rejects": {"max": 1}}, True),
        ({"retention": {"keepVersions": 9}}, False),
        ({"job": {"activeDeadlineSeconds": 60}}, False),
        ({"deletionPolicy": "Delete"}, False),
        ({"refresh": {"schedule": "0 0 1 1 *"}}, False),
    ],
)
def test_a_changed_spec_is_ingested_again_where_it_changes_the_rows(
    change: dict[str, Any], again: bool
) -> None:
    before = files()
    changed = files(of=meta("catalog", generation=2), **change)
    made = refresh(changed, ingested(before))
    assert made.actions == ((ingest(changed),) if again else ())


def test_a_new_value_of_the_annotation_asks_for_one_refresh() -> None:
    asked = files(of=meta("catalog", annotations={REFRESH_ANNOTATION: "now"}))
    assert refresh(asked, ingested(files())).actions == (ingest(asked),)
    assert refresh(asked, ingested(asked)).actions == ()


@pytest.mark.parametrize(
    ("started", "due"),
    [(ago(minutes=44), False), (ago(minutes=46), True), (ago(days=30), True)],
)
def test_the_schedule_asks_for_one_refresh_however_many_were_missed(started: datetime, due: bool) -> None:
    resource = files(refresh=HOURLY)
    done = refreshed(resource, started_at=started, completed_at=started + timedelta(seconds=9))
    made = refresh(resource, ingested(resource, last_refresh=done))
    assert made.actions == ((ingest(resource),) if due else ())
    assert made.status["nextRefreshTime"] == ("2026-05-04T11:15:00Z" if due else "2026-05-04T12:15:00Z")
    assert condition(made, C.FRESH) == ("True", "Refreshing" if due else "Refreshed")


def test_a_refresh_that_ran_through_a_firing_does_not_count_for_it() -> None:
    resource = files(refresh=HOURLY)
    done = refreshed(resource, started_at=ago(minutes=50), completed_at=ago(minutes=1))
    assert refresh(resource, ingested(resource, last_refresh=done)).actions == (ingest(resource),)


def test_a_firing_that_nothing_came_of_for_long_is_overdue() -> None:
    resource = files(refresh=HOURLY, job={"activeDeadlineSeconds": 60})
    made = refresh(resource, ingested(resource))
    assert condition(made, C.FRESH) == ("False", "Overdue")


def test_suspended_reads_nothing_for_whatever_reason_and_stops_what_runs() -> None:
    resource = files(refresh={**HOURLY, "suspend": True}, sources=[{"uri": "s3://raw/b.csv"}])
    made = refresh(resource, ingested(files()))
    assert made.actions == ()
    assert condition(made, C.FRESH) == ("Unknown", "Suspended")
    assert condition(made, C.READY)[0] == "True"
    assert "nextRefreshTime" not in made.status
    busy = refresh(resource, replace(ingested(files()), work=running(ingest(resource))))
    assert busy.actions == (StopWork(),)


def test_a_refresh_that_does_not_end_at_its_deadline_is_stopped_and_counts_as_failed() -> None:
    resource = files(job={"activeDeadlineSeconds": 59})
    busy = replace(EMPTY, work=running(ingest(resource)))
    assert refresh(resource, busy).actions == ()
    (stop,) = refresh(resource, busy, NOW + timedelta(minutes=1)).actions
    assert isinstance(stop, StopWork)
    assert "longer than 59 s" in stop.failed


@pytest.mark.parametrize(
    ("error", "pin", "schema", "fresh"),
    [
        ("SchemaConflict", "", "SchemaChanged", "SchemaIncompatible"),
        ("SchemaConflict", "a" * 64, "FingerprintMismatch", "SchemaIncompatible"),
        ("Unavailable", "", "Compatible", "SourceUnreachable"),
        ("NotFound", "", "Compatible", "SourceUnreachable"),
        ("Invalid", "", "Compatible", "RefreshFailed"),
        ("Conflict", "", "Compatible", "RefreshFailed"),
    ],
)
def test_a_failed_refresh_says_why_waits_and_keeps_the_version_before(
    error: str, pin: str, schema: str, fresh: str
) -> None:
    resource = files(schema={"fingerprint": pin})
    failed = failure(ingest(resource), error, at=NOW, attempts=3, message="column b is gone")
    made = refresh(resource, ingested(files(transform={"sql": "SELECT 0"}), failures=(failed,)))
    assert (made.actions, made.requeue_after_s) == ((), 20)
    assert made.status["consecutiveFailures"] == 3
    assert condition(made, C.READY) == ("True", "Published")
    assert condition(made, C.SCHEMA_COMPATIBLE)[1] == schema
    assert condition(made, C.FRESH) == ("False", fresh)
    assert "column b is gone" in message(made, C.FRESH)
    due = refresh(
        resource,
        ingested(files(transform={"sql": "SELECT 0"}), failures=(failed,)),
        NOW + timedelta(seconds=20),
    )
    assert due.actions == (ingest(resource),)


def test_failures_are_counted_over_a_restart_until_a_refresh_ends_well() -> None:
    resource = files()
    failed = refresh(resource, replace(EMPTY, failures=(failure(ingest(resource), attempts=3),)))
    restarted = refresh(after(resource, failed), EMPTY)
    assert restarted.status["consecutiveFailures"] == 3
    assert refresh(after(resource, restarted), ingested(resource)).status["consecutiveFailures"] == 0


def test_another_wish_does_not_wait_for_an_old_failure() -> None:
    resource = files(transform={"sql": "SELECT 2"})
    old = failure(ingest(files()), at=NOW, attempts=9)
    assert refresh(resource, replace(EMPTY, failures=(old,))).actions == (ingest(resource),)


def test_trying_again_is_no_news() -> None:
    resource = files()
    failed = (failure(ingest(resource), attempts=2),)
    first = refresh(resource, replace(EMPTY, failures=failed))
    resource = after(resource, first)
    begun = refresh(resource, replace(EMPTY, failures=failed), NOW + timedelta(seconds=30))
    assert (begun.actions, begun.events, begun.status_changed) == ((ingest(resource),), (), False)
    busy = refresh(resource, replace(EMPTY, failures=failed, work=running(ingest(resource))))
    assert (busy.events, busy.status_changed) == ((), False)


def test_a_refresh_of_another_wish_is_stopped_and_one_that_is_asked_for_again_goes_on() -> None:
    resource = files(transform={"sql": "SELECT 2"})
    busy = replace(EMPTY, work=running(ingest(files())))
    assert refresh(resource, busy).actions == (StopWork(),)
    again = files(of=meta("catalog", annotations={REFRESH_ANNOTATION: "now"}))
    assert refresh(again, busy).actions == ()


def test_a_refresh_that_has_not_begun_and_would_be_made_otherwise_now_is_begun_anew() -> None:
    resource = files()
    work = running(ingest(resource))
    waits = replace(EMPTY, work=replace(work, started=False, as_now=False))
    assert refresh(resource, waits).actions == (StopWork(),)
    for left in (replace(work, started=False), replace(work, as_now=False)):
        assert refresh(resource, replace(EMPTY, work=left)).actions == ()


def test_a_refresh_that_failed_when_it_was_made_otherwise_is_tried_again_at_once() -> None:
    resource = files()
    failed = failure(ingest(resource), "JobFailed", attempts=8)
    assert refresh(resource, replace(EMPTY, failures=(failed,))).actions == ()
    other = replace(EMPTY, failures=(replace(failed, as_now=False),))
    assert refresh(resource, other).actions == (ingest(resource),)


@pytest.mark.parametrize("current", [None, version(2)], ids=["dropped", "written"])
def test_what_somebody_else_made_of_it_is_put_right(current: Any) -> None:
    resource = files()
    made = refresh(resource, ingested(resource, current=current))
    assert made.actions == (ingest(resource),)
    assert condition(made, C.FRESH) == ("False", "Pending")
    assert refresh(resource, ingested(resource, current=None, damaged="it is not JSON")).actions == ()


def test_a_pinned_fingerprint_is_compared_with_what_is_there() -> None:
    resource = files(schema={"fingerprint": "a" * 64})
    made = refresh(resource, ingested(resource))
    assert condition(made, C.SCHEMA_COMPATIBLE) == ("False", "FingerprintMismatch")
    well = refresh(resource, ingested(resource, current=version(schema_fingerprint="a" * 64)))
    assert condition(well, C.SCHEMA_COMPATIBLE) == ("True", "Compatible")


def test_rows_set_aside_are_told_of() -> None:
    resource = files()
    made = refresh(resource, ingested(resource, last_refresh=refreshed(resource, rejected=5)))
    assert "5 rows were set aside" in message(made, C.FRESH)
    same = refreshed(resource, result=RefreshResult.UNCHANGED)
    assert condition(refresh(resource, ingested(resource, last_refresh=same)), C.FRESH) == (
        "True",
        "Unchanged",
    )


@pytest.mark.parametrize(
    ("versions", "pinned", "retires"),
    [((1, 2), set(), False), ((1, 2, 3), set(), True), ((1, 2, 3), {1}, False), ((1, 2, 3, 4), {1}, True)],
)
def test_old_versions_go_but_those_an_index_was_built_from(
    versions: tuple[int, ...], pinned: set[int], retires: bool
) -> None:
    resource = files(retention={"keepVersions": 2})
    made = refresh(resource, ingested(resource, versions=versions, pinned=frozenset(pinned)))
    assert made.actions == ((RetireVersions(2, frozenset(pinned)),) if retires else ())


def test_nothing_is_retired_while_a_refresh_is_due_or_runs() -> None:
    resource = files(retention={"keepVersions": 1}, refresh=HOURLY)
    assert refresh(resource, ingested(resource, versions=(1, 2))).actions == (ingest(resource),)
    busy = ingested(resource, versions=(1, 2), work=running(ingest(resource)))
    assert refresh(resource, busy).actions == ()


def test_a_store_that_does_not_answer_is_told_of_and_waited_for() -> None:
    resource = files()
    resource = after(resource, refresh(resource, ingested(resource)))
    made = refresh(resource, ObservedDataset(DOWN))
    assert (made.actions, made.requeue_after_s) == ((), rounds.UNREACHABLE_S)
    assert made.status["current"]["version"] == 1
    for kind in (C.READY, C.FRESH, C.SCHEMA_COMPATIBLE):
        assert condition(made, kind) == ("Unknown", "StorageNotReachable")


def test_a_manifest_that_cannot_be_read_is_not_ready() -> None:
    made = refresh(files(), ingested(files(), damaged="it ends early", current=None))
    assert condition(made, C.READY) == ("False", "Damaged")


def test_a_schedule_that_never_fires_is_not_accepted() -> None:
    made = refresh(files(refresh={"schedule": "0 0 30 2 *"}), EMPTY)
    assert made.actions == ()
    assert condition(made, C.ACCEPTED) == ("False", "InvalidSpec")
    assert [(one.type, one.reason) for one in made.events] == [(EventType.WARNING, "InvalidSpec")]


def test_deletion_keeps_the_versions_or_drops_them() -> None:
    going = meta("catalog", deletion_requested_at=ago(minutes=1))
    kept = files(of=going)
    assert refresh(kept, ingested(kept)).actions == (RemoveResource(),)
    dropped = files(of=going, deletionPolicy="Delete")
    assert refresh(dropped, ingested(dropped)).actions == (DropDataset(),)
    assert refresh(dropped, ingested(dropped, work=running(ingest(dropped)))).actions == (StopWork(),)
    assert refresh(dropped, EMPTY).actions == (RemoveResource(),)
    assert refresh(dropped, replace(EMPTY, left_behind=True)).actions == (DropDataset(),)
    assert refresh(kept, replace(EMPTY, left_behind=True)).actions == (RemoveResource(),)


def test_a_refresh_waits_until_other_jobs_have_ended() -> None:
    resource = files()
    made = refresh(
        resource, replace(ingested(resource), current=None, versions=(), last_refresh=None, room=False)
    )
    assert made.actions == ()
    assert condition(made, ConditionType.FRESH) == ("False", "Queued")
    assert made.requeue_after_s is not None


def test_a_paused_dataset_is_not_refreshed() -> None:
    paused = files(of=meta("catalog", annotations={PAUSE_ANNOTATION: "true"}))
    made = refresh(paused, replace(ingested(paused), last_refresh=None))
    assert made.actions == ()
    assert condition(made, ConditionType.RECONCILIATION_PAUSED) == ("True", "Paused")
