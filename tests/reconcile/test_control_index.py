"""What is decided for a VectorIndex, rule by rule."""

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from control_samples import (
    DRAIN,
    IDENTITY,
    NOW,
    ONCE,
    SOURCE,
    after,
    ago,
    built,
    condition,
    decide,
    failure,
    index,
    life,
    message,
    meta,
    rows,
    running,
    seen,
    unborn,
)
from lakehouse.control import conditions, facts, rounds, state, vector_index
from lakehouse.control.conditions import INDEX_CONDITIONS, ConditionType
from lakehouse.control.plan import (
    BuildIndex,
    CreateIndex,
    DropIndex,
    EventType,
    Merge,
    Plan,
    RebuildIndex,
    RemoveResource,
    RestoreIndex,
    Resume,
    SetEfSearch,
    StopWork,
    Suspend,
    TakeOver,
)
from lakehouse.control.state import (
    ADOPT_ANNOTATION,
    PAUSE_ANNOTATION,
    SECRET_NOT_READABLE,
    LastDrain,
    ObservedBootstrap,
    ObservedTarget,
    Resource,
    StoreState,
)
from lakehouse.core import incarnation
from lakehouse.core.types import Distance, IndexParams

DOWN = StoreState(False, "Timeout", "no answer in 10 s")
TARGET = ObservedTarget(True, 3, "cosine", serving=True)
C = ConditionType


def acts(made: Plan) -> list[type]:
    return [type(one) for one in made.actions]


# ---- the first look, and rest ---------------------------------------------------------------------------------------


def test_the_first_look_sets_every_condition_with_reason_and_generation() -> None:
    made = decide(index(of=meta(generation=4)), unborn(store=StoreState(None)))
    told = made.status["conditions"]
    assert [one["type"] for one in told] == list(INDEX_CONDITIONS)
    assert all(one["reason"] and one["observedGeneration"] == 4 for one in told)
    assert made.status["observedGeneration"] == 4
    assert made.actions == ()


def test_a_served_index_that_is_as_asked_for_needs_nothing_and_writes_nothing_the_second_time() -> None:
    resource = index()
    first = decide(resource, seen())
    assert first.actions == ()
    assert first.status_changed
    again = decide(after(resource, first), seen(), NOW + timedelta(hours=1))
    assert (again.actions, again.events, again.status_changed) == ((), (), False)


def test_a_finding_keeps_the_time_of_its_turn_while_its_status_stays() -> None:
    resource = index()
    resource = after(resource, decide(resource, seen()))
    later = decide(resource, seen(replicas=2), NOW + timedelta(hours=1))
    ready = conditions.find(later.status, C.READY)
    assert ready["reason"] == "SomeReplicasServing"
    assert ready["lastTransitionTime"] == conditions.timestamp(NOW)
    gone = decide(after(resource, later), seen(serving=False), NOW + timedelta(hours=2))
    assert conditions.find(gone.status, C.READY)["lastTransitionTime"] == "2026-05-04T14:00:30Z"


def test_the_status_has_what_was_seen_and_nothing_else() -> None:
    resource = index(source=SOURCE)
    observed = seen(
        life=built(resource, 3),
        items=7,
        position="inc.9",
        source=rows(3),
        replicas=2,
        ready_replicas=1,
        endpoint="http://products:3110",
        selector="app=products",
    )
    status = dict(decide(resource, observed).status)
    del status["conditions"]
    assert status == {
        "observedGeneration": 1,
        "replicas": 2,
        "readyReplicas": 1,
        "selector": "app=products",
        "endpoint": "http://products:3110",
        "items": 7,
        "position": "inc.9",
        "source": {"dataset": "catalog", "version": 3},
    }


def test_what_cannot_be_seen_keeps_what_was_last_seen() -> None:
    resource = index()
    resource = after(resource, decide(resource, seen(items=7)))
    made = decide(resource, unborn(store=DOWN))
    assert made.status["items"] == 7
    assert condition(made, C.STORAGE_REACHABLE) == ("False", "Timeout")
    assert condition(made, C.UP_TO_DATE) == ("Unknown", "StorageNotReachable")
    assert made.actions == ()
    assert made.requeue_after_s == rounds.UNREACHABLE_S


def test_an_index_that_still_answers_is_ready_while_the_store_is_down() -> None:
    assert condition(decide(index(), seen(store=DOWN)), C.READY) == ("True", "AllReplicasServing")


def test_pods_that_do_not_reach_the_store_are_told_of_and_hold_nothing_back() -> None:
    """What the store tells whoever decides is not in doubt: everything but the one condition is as without them."""
    spec: dict[str, Any] = {"drain": DRAIN, "snapshots": {"schedule": "0 * * * *"}, "hnsw": {"efSearch": 99}}
    resource = index(**spec)
    for usual in (seen(target=TARGET), unborn(), seen(store=DOWN), seen(store=StoreState(None))):
        well, made = decide(resource, usual), decide(resource, replace(usual, cut_off="products-0: refused"))
        assert made.actions == well.actions
        assert made.requeue_after_s == well.requeue_after_s
        reachable = usual.store.reachable
        for kind in INDEX_CONDITIONS:
            if kind is not C.STORAGE_REACHABLE or not reachable:
                assert condition(made, kind) == condition(well, kind)
        if reachable:
            assert condition(made, C.STORAGE_REACHABLE) == ("False", rounds.UNREACHABLE_FROM_PODS)
            assert message(made, C.STORAGE_REACHABLE) == "products-0: refused"


def test_a_deletion_does_not_wait_for_pods_that_do_not_reach_the_store() -> None:
    resource = replace(
        index(deletionPolicy="Delete"), meta=replace(index().meta, deletion_requested_at=ago(seconds=1))
    )
    assert decide(resource, seen(cut_off="products-0: refused")).actions == (DropIndex(),)


# ---- content --------------------------------------------------------------------------------------------------------


def test_an_index_without_source_is_created_empty() -> None:
    made = decide(index(shards=2, hnsw={"m": 8}), unborn())
    assert made.actions == (CreateIndex(IndexParams("products", 3, 8), 2, IDENTITY),)
    assert condition(made, C.READY) == ("False", "Pending")


MISSING = "s3://lake/shop at http://minio:9000"


@pytest.mark.parametrize(
    "spec", [{}, {"bootstrap": {"snapshot": {"uri": "s3://b/k.lhv1"}}}, {"source": ONCE}]
)
@pytest.mark.parametrize("held", [{"items": 7}, {"items": 0, "position": "life:9"}])
def test_content_that_is_nowhere_is_told_of_and_not_begun_anew(
    spec: dict[str, Any], held: dict[str, Any]
) -> None:
    resource = index(**spec)
    resource = after(resource, decide(resource, seen(**held)))
    made = decide(resource, unborn(unrecorded=MISSING, source=rows()))
    assert made.actions == ()
    for kind in (C.READY, C.UP_TO_DATE):
        assert condition(made, kind) == ("False", "ContentMissing")
        assert MISSING in message(made, kind)
        assert f"{held['items']} items" in message(made, kind)
    again = decide(after(resource, made), unborn(unrecorded=MISSING, source=rows()))
    assert (again.actions, again.status_changed) == ((), False)  # it still knows what it held
    back = decide(after(resource, made), seen(source=rows()))
    assert condition(back, C.READY) == ("True", "AllReplicasServing")


def test_a_name_begins_where_its_status_tells_of_nothing_or_its_end_is_on_record() -> None:
    assert acts(decide(index(), unborn(unrecorded=MISSING))) == [CreateIndex]
    held = after(index(), decide(index(), seen(items=7)))
    assert acts(decide(held, unborn())) == [CreateIndex]  # somebody ended that life


def test_what_only_a_dataset_fills_is_built_again_where_it_is_missing() -> None:
    resource = index(source=SOURCE)
    resource = after(resource, decide(resource, seen(life=built(resource), items=7, source=rows())))
    assert acts(decide(resource, unborn(unrecorded=MISSING, source=rows()))) == [BuildIndex]


def test_creating_that_failed_waits_and_is_told_of() -> None:
    action = CreateIndex(IndexParams("products", 3), 1, IDENTITY)
    made = decide(index(), unborn(failures=(failure(action, attempts=2),)))
    assert made.actions == ()
    assert condition(made, C.UP_TO_DATE) == ("False", "CreateFailed")
    assert condition(made, C.READY) == ("False", "CreateFailed")
    assert made.requeue_after_s == pytest.approx(9.0)


def test_an_index_with_a_source_is_built_from_the_newest_version() -> None:
    resource = index(source=SOURCE)
    made = decide(resource, unborn(source=rows(4)))
    (action,) = made.actions
    assert isinstance(action, BuildIndex)
    assert (action.version, action.replaces, action.owner) == (4, False, IDENTITY)
    assert action.origin == {
        "dataset": "catalog",
        "version": 4,
        "id_column": "id",
        "vector_column": "embedding",
        "metadata_columns": [],
        "build": action.build_key,
    }
    assert condition(made, C.SOURCE_RESOLVED) == ("True", "Resolved")


def test_work_in_flight_is_never_started_a_second_time() -> None:
    resource = index(source=SOURCE)
    (action,) = decide(resource, unborn(source=rows(4))).actions
    made = decide(resource, unborn(source=rows(5), work=running(action)))
    assert made.actions == ()
    assert condition(made, C.READY) == ("False", "Building")
    assert condition(made, C.UP_TO_DATE) == ("False", "Building")
    assert message(made, C.UP_TO_DATE) == "10 of 20 items"


@pytest.mark.parametrize(
    ("source", "version", "replaced"),
    [(SOURCE, 1, False), (SOURCE, 2, True), (ONCE, 1, False), (ONCE, 2, False)],
)
def test_only_latest_goes_with_a_new_version(source: dict[str, Any], version: int, replaced: bool) -> None:
    resource = index(source=source)
    made = decide(resource, seen(life=built(resource, 1), items=7, source=rows(version)))
    assert message(made, C.ACCEPTED) == ""
    assert acts(made) == ([BuildIndex] if replaced else [])
    if replaced:
        assert made.actions[0].replaces  # type: ignore[attr-defined]
        assert condition(made, C.READY)[0] == "True"
        assert condition(made, C.UP_TO_DATE) == ("False", "BuildRequired")


def test_latest_also_follows_a_dataset_that_began_anew() -> None:
    resource = index(source=SOURCE)
    assert acts(decide(resource, seen(life=built(resource, 9), items=7, source=rows(1)))) == [BuildIndex]


def test_other_columns_rebuild_latest_and_are_a_note_for_once() -> None:
    columns = {"metadataColumns": ["price"]}
    for source, expected in ((SOURCE, [BuildIndex]), (ONCE, [])):
        there = built(index(source=source))
        changed = index(source={"dataset": {**source["dataset"], **columns}})
        made = decide(changed, seen(life=there, items=7, source=rows(1)))
        assert acts(made) == expected
        assert condition(made, C.ACCEPTED) == ("True", "Valid")
        assert ("nothing was done" in message(made, C.ACCEPTED)) == (not expected)


def test_a_source_given_later_builds_an_empty_index_and_spares_a_filled_one() -> None:
    for source in (SOURCE, ONCE):
        assert acts(decide(index(source=source), seen(items=0, source=rows()))) == [BuildIndex]
        spared = decide(index(source=source), seen(items=3, source=rows()))
        assert spared.actions == ()
        assert condition(spared, C.UP_TO_DATE) == ("False", "NotEmpty")
        unsure = decide(index(source=source), seen(items=None, serving=False, source=rows()))
        assert unsure.actions == ()
        given_up = index(of=meta(annotations={ADOPT_ANNOTATION: "true"}), source=source)
        assert acts(decide(given_up, seen(items=3, source=rows()))) == [BuildIndex]


@pytest.mark.parametrize("source", [SOURCE, ONCE])
def test_what_is_written_while_an_empty_index_is_built_neither_stops_the_build_nor_is_given_up_by_it(
    source: dict[str, Any],
) -> None:
    resource = index(source=source)
    (build,) = decide(resource, seen(items=0, source=rows())).actions
    assert isinstance(build, BuildIndex)
    assert (build.replaces, build.adopts) == (True, False)
    meanwhile = seen(items=5, source=rows(), work=running(build))
    going_on = decide(resource, meanwhile)
    assert going_on.actions == ()
    assert condition(going_on, C.UP_TO_DATE) == ("False", "Building")
    newer = decide(resource, replace(meanwhile, source=rows(2)))
    assert (newer.actions, condition(newer, C.UP_TO_DATE)) == ((), ("False", "Building"))
    failed = decide(resource, seen(items=5, source=rows(), failures=(failure(build),)))
    assert (failed.actions, condition(failed, C.UP_TO_DATE)) == ((), ("False", "NotEmpty"))
    adopting = index(of=meta(annotations={ADOPT_ANNOTATION: "true"}), source=source)
    (given_up,) = decide(adopting, seen(items=5, source=rows())).actions
    assert given_up == replace(build, adopts=True)
    (first,) = decide(adopting, unborn(source=rows())).actions
    assert first == replace(build, replaces=False)


@pytest.mark.parametrize("between", [ONCE, None])
def test_what_followed_and_was_written_to_in_between_follows_again_only_when_its_items_are_given_up(
    between: dict[str, Any] | None,
) -> None:
    followed = built(index(source=SOURCE), 1)
    open_to_writers = index(source=between) if between else index()
    meanwhile = decide(open_to_writers, seen(life=followed, items=7, source=rows(2)))
    assert meanwhile.actions == ()
    untouched = decide(index(source=SOURCE), seen(life=followed, items=7, source=rows(2)))
    assert acts(untouched) == [BuildIndex]
    record = incarnation.begin(0, UUID(int=1), followed.params, 1, IDENTITY, followed.origin)
    written = facts.life(incarnation.opened_to_writers(record))
    assert written is not None
    spared = decide(index(source=SOURCE), seen(life=written, items=8, source=rows(2)))
    assert (spared.actions, condition(spared, C.UP_TO_DATE)) == ((), ("False", "NotEmpty"))


@pytest.mark.parametrize("version", [1, 2])
def test_what_was_built_once_and_written_to_since_follows_only_when_its_items_are_given_up(
    version: int,
) -> None:
    resource, source = index(source=SOURCE), rows(version)
    adopting = index(of=meta(annotations={ADOPT_ANNOTATION: "true"}), source=SOURCE)
    once = decide(index(source=ONCE), unborn(source=rows())).actions[0]
    assert isinstance(once, BuildIndex)
    there = life(origin=once.origin)
    assert there.origin["follow"] == "Once"
    spared = decide(resource, seen(life=there, items=9, source=source))
    assert spared.actions == ()
    assert condition(spared, C.UP_TO_DATE) == ("False", "NotEmpty")
    assert ADOPT_ANNOTATION in message(spared, C.UP_TO_DATE)
    for items in (None, 0):  # its pods may take writes until they know that they may not
        assert decide(resource, seen(life=there, items=items, source=source)).actions == ()
    (action,) = decide(adopting, seen(life=there, items=9, source=source)).actions
    assert isinstance(action, BuildIndex)
    assert (action.replaces, action.version, "follow" in action.origin) == (True, version, False)
    assert decide(index(source=ONCE), seen(life=there, items=9, source=source)).actions == ()
    followed = life(origin=action.origin)
    assert decide(resource, seen(life=followed, items=9, source=source)).actions == ()


@pytest.mark.parametrize(
    ("dataset", "reason"),
    [
        (None, "DatasetNotFound"),
        (rows(columns={"embedding": "FLOAT[3]"}), "ColumnNotFound"),
        (rows(columns={"id": "VARCHAR", "embedding": "VARCHAR"}), "SchemaIncompatible"),
        (rows(columns={"id": "VARCHAR", "embedding": "VARCHAR[]"}), "SchemaIncompatible"),
        (rows(columns={"id": "VARCHAR", "embedding": "FLOAT[4]"}), "DimensionMismatch"),
        (
            rows(columns={"id": "VARCHAR", "embedding": "DOUBLE[]"}, vector_lengths=(3, 4)),
            "DimensionMismatch",
        ),
        (rows(vector_nulls=2), "NullVectors"),
    ],
)
def test_a_dataset_that_does_not_fit_is_not_built_from(
    dataset: state.ObservedSource | None, reason: str
) -> None:
    made = decide(index(source=SOURCE), unborn(source=dataset))
    assert made.actions == ()
    assert condition(made, C.SOURCE_RESOLVED) == ("False", reason)
    assert condition(made, C.READY) == ("False", "SourceNotResolved")


def test_a_source_that_can_be_none_says_why_and_leaves_the_index_as_it_is() -> None:
    why = "a dataset name does not end in `.json`"
    made = decide(index(source=SOURCE), unborn(source_detail=why))
    assert made.actions == ()
    assert condition(made, C.SOURCE_RESOLVED) == ("False", "DatasetNotUsable")
    assert condition(made, C.READY) == ("False", "SourceNotResolved")
    assert [message(made, kind) for kind in (C.SOURCE_RESOLVED, C.READY)] == [why, why]
    assert [(one.reason, one.type) for one in made.events] == [("DatasetNotUsable", EventType.WARNING)]
    resource = index(source=SOURCE)
    served = decide(resource, seen(life=built(resource), items=7, source_detail=why))
    assert served.actions == ()
    assert condition(served, C.READY) == ("True", "AllReplicasServing")
    assert condition(served, C.UP_TO_DATE) == ("False", "SourceNotResolved")


@pytest.mark.parametrize(
    "kind", ["FLOAT[3]", "FLOAT[]", "DOUBLE[]", "DECIMAL(10,2)[3]", "INTEGER[]", "UTINYINT[3]"]
)
def test_lists_of_any_numbers_are_vectors(kind: str) -> None:
    made = decide(index(source=SOURCE), unborn(source=rows(columns={"id": "VARCHAR", "embedding": kind})))
    assert condition(made, C.SOURCE_RESOLVED) == ("True", "Resolved")


def test_a_version_that_does_not_fit_leaves_the_one_that_is_served() -> None:
    resource = index(source=SOURCE)
    made = decide(resource, seen(life=built(resource), items=7, source=rows(2, columns={"id": "VARCHAR"})))
    assert made.actions == ()
    assert condition(made, C.READY) == ("True", "AllReplicasServing")
    assert condition(made, C.UP_TO_DATE) == ("False", "SourceNotResolved")


def test_a_failed_build_waits_longer_each_time_and_another_version_does_not_wait() -> None:
    resource = index(source=SOURCE)
    (action,) = decide(resource, unborn(source=rows(1))).actions
    for attempts, wait in ((1, 5), (2, 10), (3, 20), (8, 600), (99, 600)):
        failed = failure(action, at=NOW, attempts=attempts)
        made = decide(resource, unborn(source=rows(1), failures=(failed,)))
        assert (made.actions, made.requeue_after_s) == ((), wait)
        assert condition(made, C.UP_TO_DATE) == ("False", "BuildFailed")
        due = decide(resource, unborn(source=rows(1), failures=(failed,)), NOW + timedelta(seconds=wait))
        assert due.actions == (action,)
        newer = decide(resource, unborn(source=rows(2), failures=(failed,)))
        assert acts(newer) == [BuildIndex]


def test_a_clock_that_was_set_back_does_not_hold_an_action_back_for_longer() -> None:
    action = CreateIndex(IndexParams("products", 3), 1, IDENTITY)
    made = decide(index(), unborn(failures=(failure(action, at=NOW + timedelta(days=9)),)))
    assert (made.actions, made.requeue_after_s) == ((), 5)


def test_trouble_is_told_once_and_its_end_too() -> None:
    resource = index(source=SOURCE)
    (action,) = decide(resource, unborn(source=rows(1))).actions
    first = decide(resource, unborn(source=rows(1), failures=(failure(action),)))
    assert [(one.type, one.reason) for one in first.events] == [(EventType.WARNING, "BuildFailed")]
    resource = after(resource, first)
    again = decide(resource, unborn(source=rows(1), failures=(failure(action, attempts=2),)))
    assert again.events == ()
    well = decide(after(resource, again), seen(life=built(resource), source=rows(1)))
    assert {(one.type, one.reason) for one in well.events} == {
        (EventType.NORMAL, "Current"),
        (EventType.NORMAL, "AllReplicasServing"),
    }


def test_graph_parameters_rebuild_and_ef_search_applies_live() -> None:
    made = decide(index(hnsw={"m": 32, "efSearch": 100}), seen(items=7))
    assert acts(made) == [SetEfSearch, RebuildIndex]
    assert condition(made, C.UP_TO_DATE) == ("False", "RebuildRequired")
    assert condition(made, C.READY)[0] == "True"
    assert acts(decide(index(hnsw={"efConstruction": 100}), seen(items=7))) == [RebuildIndex]
    assert decide(index(hnsw={"efSearch": 64}), seen()).actions == ()
    assert decide(index(hnsw={"efSearch": 65}), seen(ef_search=None)).actions == ()


def test_graph_parameters_of_a_following_index_build_it_again_from_the_same_version() -> None:
    there = built(index(source=SOURCE))
    changed = index(source=SOURCE, hnsw={"m": 32})
    assert acts(decide(changed, seen(life=there, items=7, source=rows(1)))) == [BuildIndex]
    once = built(index(source=ONCE))
    assert acts(decide(index(source=ONCE, hnsw={"m": 32}), seen(life=once, items=7, source=rows(2)))) == [
        RebuildIndex
    ]


def test_ef_search_that_cannot_be_set_is_told_of() -> None:
    action = SetEfSearch(100)
    made = decide(index(hnsw={"efSearch": 100}), seen(failures=(failure(action),)))
    assert made.actions == ()
    assert condition(made, C.UP_TO_DATE) == ("False", "SetEfSearchFailed")


def test_what_was_only_just_asked_for_is_not_up_to_date_before_it_is_done() -> None:
    live = decide(index(hnsw={"efSearch": 100}), seen())
    assert (acts(live), condition(live, C.UP_TO_DATE)) == ([SetEfSearch], ("False", "SetEfSearchRequired"))
    unresolved = decide(index(source=ONCE), seen())
    assert condition(unresolved, C.UP_TO_DATE) == ("False", "SourceNotResolved")


def test_a_second_attempt_is_no_news_until_it_ends_otherwise() -> None:
    resource = index(source=SOURCE)
    (action,) = decide(resource, unborn(source=rows(1))).actions
    failed = (failure(action),)
    resource = after(resource, decide(resource, unborn(source=rows(1), failures=failed)))
    begun = decide(resource, unborn(source=rows(1), failures=failed), NOW + timedelta(minutes=1))
    assert (acts(begun), begun.events, begun.status_changed) == ([BuildIndex], (), False)
    busy = decide(resource, unborn(source=rows(1), failures=failed, work=running(action)))
    assert (busy.events, busy.status_changed) == ((), False)
    (newer,) = decide(resource, unborn(source=rows(2))).actions
    other = decide(resource, unborn(source=rows(2), failures=failed, work=running(newer)))
    assert condition(other, C.READY) == condition(other, C.UP_TO_DATE) == ("False", "Building")


def test_a_build_that_is_not_wanted_so_any_more_is_stopped_and_a_newer_version_waits() -> None:
    resource = index(source=SOURCE)
    (action,) = decide(resource, unborn(source=rows(1))).actions
    busy = unborn(source=rows(2), work=running(action))
    assert decide(resource, busy).actions == ()
    assert decide(index(source=SOURCE, hnsw={"m": 32}), busy).actions == (StopWork(),)
    (rebuild,) = decide(index(hnsw={"m": 32}), seen(items=7)).actions
    assert decide(index(hnsw={"m": 32}), seen(items=7, work=running(rebuild))).actions == ()
    assert decide(index(hnsw={"m": 8}), seen(items=7, work=running(rebuild))).actions == (StopWork(),)


@pytest.mark.parametrize(
    ("asked", "observed"),
    [
        ({"source": SOURCE}, unborn(source=rows(1))),
        ({"hnsw": {"m": 32}}, seen(items=7)),
        ({"bootstrap": {"snapshot": {"uri": "s3://b/k.lhv1"}}}, unborn()),
    ],
    ids=["build", "rebuild", "restore"],
)
def test_work_that_has_not_begun_and_would_be_made_otherwise_now_is_begun_anew(
    asked: dict[str, Any], observed: state.ObservedIndex
) -> None:
    resource = index(**asked)
    (action,) = decide(resource, observed).actions
    work = running(action)
    for started, as_now, stops in ((False, False, True), (False, True, False), (True, False, False)):
        busy = replace(observed, work=replace(work, started=started, as_now=as_now))
        assert decide(resource, busy).actions == ((StopWork(),) if stops else ())


def test_what_failed_when_it_was_made_otherwise_is_tried_again_at_once() -> None:
    resource = index(source=SOURCE)
    (action,) = decide(resource, unborn(source=rows(1))).actions
    failed = failure(action, message="a pod ran out of memory", attempts=8)
    assert decide(resource, unborn(source=rows(1), failures=(failed,))).actions == ()
    again = decide(resource, unborn(source=rows(1), failures=(replace(failed, as_now=False),)))
    assert again.actions == (action,)
    assert "out of memory" in message(again, C.UP_TO_DATE)


def test_a_damaged_index_is_left_as_it_is() -> None:
    made = decide(
        index(hnsw={"m": 32}), seen(damaged="entry 7 is off the chain", serving=False, ef_search=None)
    )
    assert made.actions == ()
    assert condition(made, C.READY) == ("False", "Damaged")
    assert condition(made, C.UP_TO_DATE) == ("False", "Damaged")


# ---- restoring ------------------------------------------------------------------------------------------------------


def test_a_new_index_is_restored_from_a_snapshot_that_is_complete() -> None:
    resource = index(bootstrap={"snapshot": {"name": "nightly"}})
    gone = decide(resource, unborn(bootstrap=ObservedBootstrap(False)))
    assert (gone.actions, condition(gone, C.RESTORED)) == ((), ("False", "SnapshotNotFound"))
    early = decide(resource, unborn(bootstrap=ObservedBootstrap(True)))
    assert (early.actions, condition(early, C.RESTORED)) == ((), ("Unknown", "SnapshotNotComplete"))
    never = decide(resource, unborn(bootstrap=ObservedBootstrap(True, detail="too late", failed=True)))
    assert condition(never, C.RESTORED) == condition(never, C.UP_TO_DATE) == ("False", "SnapshotNotComplete")
    ripe = decide(resource, unborn(bootstrap=ObservedBootstrap(True, complete=True)))
    assert ripe.actions == (RestoreIndex(IndexParams("products", 3), 1, IDENTITY, "nightly", None),)
    busy = decide(resource, unborn(work=running(ripe.actions[0])))
    assert (busy.actions, condition(busy, C.RESTORED)) == ((), ("Unknown", "InProgress"))
    done = decide(resource, seen(life=life(origin={"snapshot": "nightly", "digest": "d"}), items=7))
    assert (done.actions, condition(done, C.RESTORED)) == ((), ("True", "Verified"))


@pytest.mark.parametrize(
    ("error", "reason"),
    [("Corrupt", "DigestMismatch"), ("NotFound", "SnapshotNotFound"), ("Invalid", "RestoreFailed")],
)
def test_a_file_that_cannot_be_restored_says_why(error: str, reason: str) -> None:
    resource = index(bootstrap={"snapshot": {"uri": "s3://b/x.lhv1"}})
    (action,) = decide(resource, unborn()).actions
    made = decide(resource, unborn(failures=(failure(action, error),)))
    assert condition(made, C.RESTORED) == ("False", reason)


def test_nothing_is_restored_over_an_index_that_is_there() -> None:
    resource = index(bootstrap={"snapshot": {"uri": "s3://b/x.lhv1"}})
    for there in (life(), life(origin={"uri": "s3://b/other.lhv1"}), life(owner="elsewhere")):
        made = decide(resource, seen(life=there, items=7))
        assert not any(isinstance(one, RestoreIndex) for one in made.actions)
        assert condition(made, C.RESTORED) == ("False", "NotEmpty")


# ---- who owns it ----------------------------------------------------------------------------------------------------


def test_anothers_index_is_left_alone_until_the_annotation_says_otherwise() -> None:
    foreign = life(owner="elsewhere/default/products")
    made = decide(index(hnsw={"m": 32, "efSearch": 9}), seen(life=foreign, items=7))
    assert made.actions == ()
    assert condition(made, C.ACCEPTED) == ("False", "PrefixTaken")
    assert condition(made, C.READY) == ("False", "NotAccepted")
    assert condition(made, C.UP_TO_DATE) == ("Unknown", "NotAccepted")
    assert "elsewhere/default/products" in message(made, C.ACCEPTED)
    adopting = index(of=meta(annotations={ADOPT_ANNOTATION: "true"}), source=SOURCE)
    taking = decide(adopting, seen(life=foreign, items=7, source=rows()))
    assert taking.actions == (TakeOver(IDENTITY),)
    assert condition(taking, C.ACCEPTED) == ("Unknown", "TakingOver")
    stuck = decide(adopting, seen(life=foreign, failures=(failure(TakeOver(IDENTITY)),)))
    assert (stuck.actions, message(stuck, C.ACCEPTED)) == ((), "it broke")


@pytest.mark.parametrize(
    ("spec", "taken"),
    [({}, True), ({"source": SOURCE}, False), ({"bootstrap": {"snapshot": {"uri": "x.lhv1"}}}, False)],
)
def test_an_index_that_nobody_declared_is_taken_where_that_costs_none_of_its_items(
    spec: dict[str, Any], taken: bool
) -> None:
    made = decide(index(**spec), seen(life=life(owner=None), items=7, source=rows()))
    assert made.actions == ((TakeOver(IDENTITY),) if taken else ())
    assert condition(made, C.ACCEPTED) == (("Unknown", "TakingOver") if taken else ("False", "PrefixTaken"))


def test_anothers_index_stays_anothers_while_the_store_does_not_tell() -> None:
    resource = index()
    taken = decide(resource, seen(life=life(owner="elsewhere/default/products")))
    resource = after(resource, taken)
    for silent in (unborn(store=DOWN), unborn(damaged="its record cannot be read")):
        made = decide(resource, silent)
        assert condition(made, C.ACCEPTED) == ("False", "PrefixTaken")
        assert message(made, C.ACCEPTED) == message(taken, C.ACCEPTED)
        assert condition(made, C.READY) == ("False", "NotAccepted")
        assert made.actions == ()
    freed = decide(resource, unborn())
    assert condition(freed, C.ACCEPTED) == ("True", "Valid")


@pytest.mark.parametrize(
    "other",
    [
        life(params=IndexParams("products", 4)),
        life(params=IndexParams("products", 3, distance=Distance.DOT)),
        life(shards=2),
    ],
)
def test_an_index_of_another_shape_is_never_touched(other: state.Life) -> None:
    for owner in (IDENTITY, "elsewhere", None):
        adopting = index(of=meta(annotations={ADOPT_ANNOTATION: "true"}), source=SOURCE)
        made = decide(adopting, seen(life=replace(other, owner=owner), source=rows(), items=7))
        assert made.actions == ()
        assert condition(made, C.ACCEPTED) == ("False", "ParamsMismatch")


def test_a_spec_that_means_nothing_is_told_of_and_changes_nothing() -> None:
    resource = index(snapshots={"schedule": "0 0 30 2 *", "timeZone": "Mars/X"}, hnsw={"m": 32})
    made = decide(resource, seen())
    assert made.actions == ()
    assert condition(made, C.ACCEPTED) == ("False", "InvalidSpec")
    assert "spec.snapshots.schedule" in message(made, C.ACCEPTED)
    assert condition(made, C.READY)[0] == "True"


# ---- suspending -----------------------------------------------------------------------------------------------------


def test_suspending_stops_work_first_and_then_serving() -> None:
    resource = index(suspend=True, source=SOURCE, hnsw={"efSearch": 9})
    work = running(RebuildIndex(IndexParams("products", 3)))
    assert decide(resource, seen(life=built(resource), source=rows(2), work=work)).actions == (StopWork(),)
    assert decide(resource, seen(life=built(resource), source=rows(2))).actions == (Suspend(),)
    asleep = decide(resource, seen(life=built(resource), source=rows(2), serving=False, suspended=True))
    assert asleep.actions == ()
    assert condition(asleep, C.READY) == ("False", "Suspended")
    assert condition(asleep, C.UP_TO_DATE) == ("False", "Suspended")
    awake = decide(
        index(source=SOURCE), seen(life=built(resource), serving=False, suspended=True, source=rows(2))
    )
    assert awake.actions == (Resume(),)


def test_suspending_needs_neither_the_store_nor_a_spec_that_means_something() -> None:
    lost = unborn(store=DOWN, deployed=True)
    unread = unborn(damaged="its record cannot be read", deployed=True)
    for observed in (lost, unread, seen(store=DOWN), unborn(deployed=True)):
        assert decide(index(suspend=True), observed).actions == (Suspend(),)
        assert not any(isinstance(one, Suspend) for one in decide(index(), observed).actions)
        asleep = decide(index(suspend=True), replace(observed, serving=False, suspended=True))
        assert asleep.actions == ()
        assert condition(asleep, C.READY) == ("False", "Suspended")
    senseless = index(suspend=True, snapshots={"schedule": "0 0 * * *", "timeZone": "Mars/X"})
    made = decide(senseless, seen())
    assert condition(made, C.ACCEPTED) == ("False", "InvalidSpec")
    assert made.actions == (Suspend(),)
    busy = replace(lost, work=running(RebuildIndex(IndexParams("products", 3))))
    assert decide(index(suspend=True), busy).actions == (StopWork(),)
    held = replace(lost, failures=(failure(Suspend(), at=NOW),))
    assert decide(index(suspend=True), held).actions == ()
    paused = index(of=meta(annotations={PAUSE_ANNOTATION: "true"}), suspend=True)
    assert decide(paused, lost).actions == ()


def test_suspending_never_touches_what_is_anothers_or_not_there() -> None:
    anothers = life(owner="elsewhere/default/products")
    for observed in (seen(life=anothers, deployed=True), seen(life=life(owner=None), deployed=True)):
        made = decide(index(suspend=True, source=SOURCE), observed)
        assert made.actions == ()
        assert condition(made, C.ACCEPTED) == ("False", "PrefixTaken")
    assert decide(index(suspend=True), unborn(store=DOWN)).actions == ()
    assert decide(index(suspend=True), unborn(name_taken="Deployment products-shard-0")).actions == ()


@pytest.mark.parametrize("annotations", [{}, {PAUSE_ANNOTATION: "true"}], ids=["at work", "paused"])
def test_a_turn_to_sleep_or_awake_that_has_not_been_made_is_not_up_to_date(
    annotations: dict[str, str],
) -> None:
    def told(suspend: bool, **changes: Any) -> tuple[str, str]:
        resource = index(of=meta(annotations=annotations), suspend=suspend)
        return condition(decide(resource, seen(**changes)), C.UP_TO_DATE)

    asleep: dict[str, Any] = {"suspended": True, "serving": False}
    assert told(True) == ("False", "SuspendRequired")
    assert told(False, **asleep) == ("False", "ResumeRequired")
    assert told(True, failures=(failure(Suspend()),)) == ("False", "SuspendFailed")
    assert told(True, **asleep) == told(False) == ("True", "Current")
    # Its pods would be made otherwise now, and have not been.
    assert told(True, **asleep, rolling="not yet as the spec says: products-shard-0") == (
        "False",
        "RollingOut",
    )


def test_a_suspended_resource_begins_nothing() -> None:
    made = decide(index(suspend=True), unborn())
    assert made.actions == ()
    assert condition(made, C.READY) == ("False", "Suspended")


# ---- drains ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("items", "waited_s", "wait_s"),
    [(0, None, None), (499, 0, 300), (499, 299, 1), (1, 300, 0), (500, 0, 0), (10_000, 0, 0)],
)
def test_a_drain_is_due_by_count_or_by_age(items: int, waited_s: float | None, wait_s: float | None) -> None:
    since = None if waited_s is None else ago(seconds=waited_s)
    made = decide(index(drain=DRAIN), seen(items=items, pending_since=since, target=TARGET))
    if wait_s == 0:
        assert made.actions == (Merge("workers", replace=True),)
        assert condition(made, C.DRAIN_CURRENT) == ("True", "Draining")
    else:
        assert (made.actions, made.requeue_after_s) == ((), wait_s)
        assert condition(made, C.DRAIN_CURRENT) == ("True", "BelowLimit")


def test_under_a_steady_inflow_items_wait_from_the_last_drain_on() -> None:
    drained = LastDrain(ago(seconds=100), 7)
    made = decide(
        index(drain=DRAIN), seen(items=9, pending_since=ago(seconds=900), last_drain=drained, target=TARGET)
    )
    assert (made.actions, made.requeue_after_s) == ((), 200)


def test_the_target_wins_where_that_was_asked_for() -> None:
    made = decide(index(drain={**DRAIN, "onConflict": "Skip"}), seen(items=500, target=TARGET))
    assert made.actions == (Merge("workers", replace=False),)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (None, "TargetNotFound"),
        (ObservedTarget(False), "TargetNotFound"),
        (replace(TARGET, dimension=4), "DimensionMismatch"),
        (replace(TARGET, distance="dot"), "DistanceMismatch"),
        (replace(TARGET, read_only=True), "TargetReadOnly"),
        (replace(TARGET, going=True), "TargetDeleting"),
        (replace(TARGET, serving=False), "TargetNotServing"),
        (replace(TARGET, chain=("products",)), "DrainCycle"),
        (replace(TARGET, chain=("x", "y", "products", "workers")), "DrainCycle"),
    ],
)
def test_a_target_that_cannot_take_the_items_stops_the_drain(
    target: ObservedTarget | None, reason: str
) -> None:
    made = decide(index(drain=DRAIN), seen(items=500, target=target))
    assert made.actions == ()
    assert condition(made, C.DRAIN_CURRENT) == ("False", reason)


def test_a_ring_is_shown_whole() -> None:
    made = decide(index(drain=DRAIN), seen(target=replace(TARGET, chain=("x", "products", "workers"))))
    assert message(made, C.DRAIN_CURRENT).endswith(": products → workers → x → products")


def test_a_ring_further_on_is_not_this_index_s() -> None:
    made = decide(index(drain=DRAIN), seen(items=500, target=replace(TARGET, chain=("x", "workers", "x"))))
    assert acts(made) == [Merge]


def test_a_drain_waits_for_other_work_and_after_a_failure() -> None:
    resource = index(drain=DRAIN)
    merge = Merge("workers", replace=True)
    busy = decide(resource, seen(items=500, target=TARGET, work=running(merge)))
    assert (busy.actions, condition(busy, C.DRAIN_CURRENT)) == ((), ("True", "Draining"))
    other = running(RebuildIndex(IndexParams("products", 3)))
    waits = decide(resource, seen(items=500, target=TARGET, work=other))
    assert (waits.actions, condition(waits, C.DRAIN_CURRENT)) == ((), ("False", "Waiting"))
    failed = decide(resource, seen(items=500, target=TARGET, failures=(failure(merge, at=NOW),)))
    assert (failed.actions, failed.requeue_after_s) == ((), 5)
    assert condition(failed, C.DRAIN_CURRENT) == ("False", "DrainFailed")


def test_content_comes_before_a_drain_and_one_long_action_at_a_time() -> None:
    made = decide(index(drain=DRAIN, hnsw={"m": 32}), seen(items=500, target=TARGET))
    assert acts(made) == [RebuildIndex]
    stuck = failure(made.actions[0], at=NOW)
    later = decide(index(drain=DRAIN, hnsw={"m": 32}), seen(items=500, target=TARGET, failures=(stuck,)))
    assert acts(later) == [Merge]


def test_an_index_that_does_not_answer_is_not_drained() -> None:
    made = decide(index(drain=DRAIN), seen(items=500, target=TARGET, serving=False))
    assert (made.actions, condition(made, C.DRAIN_CURRENT)) == ((), ("False", "NotServing"))


def test_a_tier_that_does_not_answer_is_not_taken_for_empty() -> None:
    resource = index(drain=DRAIN)
    resource = after(resource, decide(resource, seen(items=7, target=TARGET)))
    silent = seen(items=None, serving=False, target=TARGET)
    young = decide(resource, replace(silent, pending_since=ago(seconds=100)))
    assert condition(young, C.DRAIN_CURRENT) == ("Unknown", "NotServing")
    assert "7 of 500 items" in message(young, C.DRAIN_CURRENT)
    old = decide(resource, replace(silent, pending_since=ago(hours=5)))
    assert condition(old, C.DRAIN_CURRENT) == ("False", "NotServing")
    full = after(resource, decide(resource, seen(items=500, serving=False, target=TARGET)))
    assert condition(decide(full, silent), C.DRAIN_CURRENT) == ("False", "NotServing")
    never = decide(index(drain=DRAIN), silent)
    assert condition(never, C.DRAIN_CURRENT) == ("Unknown", "NotServing")
    assert "not known" in message(never, C.DRAIN_CURRENT)


def test_a_drain_that_something_keeps_from_beginning_does_not_pass_for_one_under_way() -> None:
    due = seen(items=500, target=TARGET)
    paused = index(of=meta(annotations={PAUSE_ANNOTATION: "true"}), drain=DRAIN)
    assert condition(decide(paused, due), C.DRAIN_CURRENT) == ("False", "Waiting")
    anothers = replace(due, life=life(owner="elsewhere/default/products"))
    assert condition(decide(index(drain=DRAIN), anothers), C.DRAIN_CURRENT) == ("False", "Waiting")
    begins = decide(index(drain=DRAIN), due)
    assert condition(begins, C.DRAIN_CURRENT) == ("True", "Draining")


def test_the_last_drain_is_remembered() -> None:
    resource = index(drain=DRAIN)
    first = decide(resource, seen(target=TARGET, last_drain=state.LastDrain(ago(minutes=1), 500)))
    assert first.status["drain"] == {"lastTime": "2026-05-04T11:59:30Z", "lastMerged": 500}
    restarted = decide(after(resource, first), seen(target=TARGET))
    assert not restarted.status_changed


# ---- deletion -------------------------------------------------------------------------------------------------------


def deleted(**spec: Any) -> Any:
    return index(of=meta(deletion_requested_at=ago(minutes=1)), **spec)


def test_retain_forgets_the_resource_and_touches_nothing() -> None:
    assert decide(deleted(), seen()).actions == (RemoveResource(),)
    assert decide(deleted(), unborn(store=DOWN)).actions == (RemoveResource(),)


def test_delete_stops_work_then_drops_then_forgets() -> None:
    resource = deleted(deletionPolicy="Delete")
    assert decide(resource, seen(work=running(Merge("x", replace=True)))).actions == (StopWork(),)
    assert decide(resource, seen(damaged="off the chain")).actions == (DropIndex(),)
    assert decide(resource, unborn()).actions == (RemoveResource(),)


def test_delete_leaves_what_cannot_be_read_and_says_so() -> None:
    made = decide(deleted(deletionPolicy="Delete"), unborn(damaged="the record is no JSON"))
    assert made.actions == (RemoveResource(),)
    assert [(one.reason, one.message) for one in made.events if one.type is EventType.WARNING] == [
        ("CleanupSkipped", "the data was left where it is: the record is no JSON")
    ]


def test_delete_does_not_wait_for_ever_for_work_to_end() -> None:
    resource, ending = deleted(deletionPolicy="Delete"), running(Merge("x", replace=True))
    late = decide(resource, seen(work=ending), NOW + rounds.DELETION_DEADLINE)
    assert late.actions == (DropIndex(),)


def test_trouble_with_objects_is_told_once() -> None:
    resource = index()
    made = decide(resource, seen())
    told = rounds.troubled(resource, made, C.UP_TO_DATE, "no right to make Services", NOW)
    assert condition(told, C.UP_TO_DATE) == ("False", "ApplyFailed")
    assert [one for one in told.status["conditions"] if one["type"] != "UpToDate"] == [
        one for one in made.status["conditions"] if one["type"] != "UpToDate"
    ]
    again = Resource(resource.kind, resource.meta, resource.spec, told.status)
    later = NOW + timedelta(seconds=9)
    repeated = rounds.troubled(
        again, decide(again, seen(), later), C.UP_TO_DATE, "no right to make Services", later
    )
    assert not repeated.status_changed


def test_delete_never_drops_what_another_owns() -> None:
    resource = deleted(deletionPolicy="Delete")
    assert decide(resource, seen(life=life(owner="elsewhere"))).actions == (RemoveResource(),)
    assert decide(resource, seen(life=life(owner=None))).actions == (RemoveResource(),)


def test_delete_waits_for_the_store_but_not_for_ever() -> None:
    resource = deleted(deletionPolicy="Delete")
    assert decide(resource, unborn(store=DOWN)).actions == ()
    late = decide(resource, unborn(store=DOWN), NOW + rounds.DELETION_DEADLINE)
    assert late.actions == (RemoveResource(),)
    assert [(one.type, one.reason) for one in late.events] == [(EventType.WARNING, "CleanupSkipped")]
    for reason in ("SecretNotFound", "BucketNotFound"):
        gone = decide(resource, unborn(store=StoreState(False, reason)))
        assert gone.actions == (RemoveResource(),)
        assert gone.events[0].reason == "CleanupSkipped"
    refused = unborn(store=StoreState(False, SECRET_NOT_READABLE))
    asked = resource.meta.deletion_requested_at
    assert asked is not None
    assert decide(resource, refused, asked + rounds.DENIED_DEADLINE / 2).actions == ()
    assert decide(resource, refused, asked + rounds.DENIED_DEADLINE).actions == (RemoveResource(),)
    failed = failure(DropIndex(), at=NOW)
    held = decide(resource, seen(failures=(failed,)))
    assert (held.actions, held.requeue_after_s) == ((), 5)
    late = decide(resource, seen(failures=(failed,)), NOW + rounds.DELETION_DEADLINE)
    assert (late.actions, late.events[0].message) == (
        (RemoveResource(),),
        "the data was left where it is: it broke",
    )


def test_delete_tries_once_at_least_however_late() -> None:
    resource = deleted(deletionPolicy="Delete")
    assert decide(resource, seen(), NOW + timedelta(days=9)).actions == (DropIndex(),)


def test_a_build_key_changes_with_everything_that_shapes_the_content() -> None:
    def key(**spec: Any) -> str:
        resource = index(**{"source": SOURCE, **spec})
        assert resource.spec.source is not None
        return vector_index.build_key(resource.spec, resource.spec.source)

    others = [
        key(hnsw={"m": 8}),
        key(hnsw={"efConstruction": 8}),
        key(shards=2),
        key(distance="dot"),
        key(source={"dataset": {**SOURCE["dataset"], "metadataColumns": ["price"]}}),
        key(source={"dataset": {**SOURCE["dataset"], "idColumn": "sku"}}),
    ]
    assert len({key(), *others}) == len(others) + 1
    assert key() == key(replicas=3, hnsw={"efSearch": 9}) == key(source=ONCE)


# ---- in a cluster ---------------------------------------------------------------------------------------------------


def test_a_paused_index_is_told_of_and_nothing_is_done() -> None:
    paused = meta(annotations={state.PAUSE_ANNOTATION: "true"})
    made = decide(index(of=paused), unborn())
    assert made.actions == ()
    assert condition(made, ConditionType.RECONCILIATION_PAUSED) == ("True", "Paused")
    assert condition(made, ConditionType.ACCEPTED) == ("True", "Valid")
    assert condition(decide(index(), unborn()), ConditionType.RECONCILIATION_PAUSED) == ("False", "Active")


def test_a_paused_index_that_is_to_go_goes() -> None:
    asked = meta(annotations={state.PAUSE_ANNOTATION: "true"}, deletion_requested_at=NOW)
    assert acts(decide(index(of=asked), unborn())) == [RemoveResource]


def test_a_name_that_another_object_has_is_told_of_and_nothing_is_done() -> None:
    made = decide(index(), unborn(name_taken="Service products is another's"))
    assert made.actions == ()
    assert condition(made, ConditionType.ACCEPTED) == ("False", "ChildNameTaken")
    assert condition(made, ConditionType.READY) == ("False", "ChildNameTaken")
    assert made.requeue_after_s is not None  # nobody tells when the other one goes


def test_an_index_that_serves_stays_ready_while_a_name_is_taken() -> None:
    made = decide(index(), seen(name_taken="PodDisruptionBudget products-shard-0 is another's"))
    assert condition(made, ConditionType.READY)[0] == "True"


def test_pods_of_an_older_make_are_told_of_and_looked_at_again() -> None:
    made = decide(index(), seen(rolling="products-shard-0 1 of 2"))
    assert condition(made, ConditionType.UP_TO_DATE) == ("False", "RollingOut")
    assert message(made, ConditionType.UP_TO_DATE) == "products-shard-0 1 of 2"
    assert made.requeue_after_s is not None
    assert not any(one.type == "Warning" for one in made.events)


def test_a_build_waits_until_other_jobs_have_ended() -> None:
    resource = index(source=SOURCE)
    made = decide(resource, unborn(source=rows(), room=False))
    assert made.actions == ()
    assert condition(made, ConditionType.UP_TO_DATE) == ("False", "Queued")
    assert made.requeue_after_s is not None
    assert decide(index(), unborn(room=False)).actions != ()  # an empty life needs no Job


def test_an_index_with_nothing_to_do_does_not_look_for_room() -> None:
    assert decide(index(), seen(room=False)).requeue_after_s is None
    assert decide(index(), seen(look_again_s=15.0)).requeue_after_s == 15.0


def test_ready_counts_the_pods_that_were_asked_for() -> None:
    made = decide(index(), seen(replicas=1, ready_replicas=1, asked_replicas=3))
    assert condition(made, ConditionType.READY) == ("True", "SomeReplicasServing")
    assert message(made, ConditionType.READY) == "1 of 3"


def test_a_bucket_whose_address_is_lost_is_as_good_as_gone() -> None:
    assert StoreState(False, "StorageUnknown").gone
    assert not StoreState(False, "Timeout").gone
