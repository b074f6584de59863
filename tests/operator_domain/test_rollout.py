"""Upgrades of the operator reach one index at a time, and one that cannot move holds up nobody."""

import copy
from datetime import UTC, datetime
from typing import Any

import pytest

from cluster_samples import NAMESPACE, deployment, index, meta, settings, where
from lakehouse.control.kinds import VectorIndexSpec
from lakehouse.control.state import PAUSE_ANNOTATION, Resource
from lakehouse_operator import names, resources, rollout

STUCK = [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]
A, B, C = ((NAMESPACE, name) for name in "abc")


def first(*there: dict[str, object], movable: str = "abc") -> rollout.Index | None:
    """Whose turn it is when nobody has waited yet."""
    line = rollout.line(there, "new", lambda one: one[1] in movable)
    return rollout.first(line, {}, 0.0)[0]


def test_the_first_by_name_goes_first_and_the_others_wait_for_it() -> None:
    assert first(deployment("b", "old"), deployment("a", "old")) == A
    assert rollout.waits_for(A, A) == ""
    assert "shop/a" in rollout.waits_for(B, A)
    assert rollout.waits_for(B, None) == ""


def test_the_next_goes_when_the_one_before_serves_again() -> None:
    old = deployment("b", "old")
    assert first(deployment("a", updated=1), old) == A
    assert first(deployment("a", available=1), old) == A
    assert first(deployment("a", observedGeneration=0), old) == A
    assert first(deployment("a"), old) == B


def test_one_that_rolls_out_of_turn_is_waited_for() -> None:
    assert first(deployment("a", "old"), deployment("b", updated=1)) == B


def test_one_that_is_stuck_holds_up_nobody() -> None:
    assert first(deployment("a", available=0, conditions=STUCK), deployment("b", "old")) == B


def test_nobody_waits_for_what_is_new_or_suspended() -> None:
    asleep = deployment("a", "old", annotations={names.SUSPENDED_ANNOTATION: "true"})
    assert first(asleep, deployment("b", "old")) == B
    assert first(deployment("a"), deployment("b")) is None


def test_nobody_waits_for_one_that_does_not_move() -> None:
    there = [deployment(name, "old") for name in "abc"]
    assert first(*there, movable="c") == C
    assert first(*there, movable="") is None


def condition(type_: str, reason: str) -> dict[str, Any]:
    return {"conditions": [{"type": type_, "status": "False", "reason": reason}]}


def test_what_is_reconciled_moves() -> None:
    assert rollout.moves(index())
    assert rollout.moves(index(status=condition("UpToDate", "RollingOut")))


@pytest.mark.parametrize(
    "resource",
    [
        None,
        Resource("VectorIndex", meta(annotations={PAUSE_ANNOTATION: "true"}), VectorIndexSpec(3), {}),
        Resource(
            "VectorIndex",
            meta(deletion_requested_at=datetime(2026, 5, 4, tzinfo=UTC)),
            VectorIndexSpec(3),
            {},
        ),
        index(status=condition("Accepted", "ChildNameTaken")),
        index(status=condition("UpToDate", "ApplyFailed")),
    ],
    ids=["gone or not understood", "paused", "being deleted", "its name is taken", "refused"],
)
def test_what_is_not_reconciled_does_not_move(resource: Resource[Any] | None) -> None:
    assert not rollout.moves(resource)


def test_nobody_is_waited_for_longer_than_ten_minutes() -> None:
    line = [rollout.Place(A, 0), rollout.Place(B, 0)]
    found, waited = rollout.first(line, {}, 0.0)
    assert found == A
    found, waited = rollout.first(line, waited, 599.0)
    assert found == A
    found, waited = rollout.first(line, waited, 600.0)
    assert found == B
    found, waited = rollout.first(line, waited, 1_199.0)  # its ten minutes began when its turn came
    assert found == B
    found, waited = rollout.first(line, waited, 1_200.0)
    assert found is None


def test_one_that_gets_further_is_waited_for_anew() -> None:
    _, waited = rollout.first([rollout.Place(A, 1)], {}, 0.0)
    found, waited = rollout.first([rollout.Place(A, 2)], waited, 590.0)
    assert rollout.first([rollout.Place(A, 2)], waited, 1_000.0)[0] == A
    found, waited = rollout.first([rollout.Place(A, 1)], waited, 1_190.0)  # fewer than before is not further
    assert found is None
    assert rollout.first([rollout.Place(A, 3)], waited, 1_200.0)[0] == A


def test_whoever_is_overtaken_begins_its_ten_minutes_anew() -> None:
    _, waited = rollout.first([rollout.Place(B, 0)], {}, 0.0)
    found, waited = rollout.first([rollout.Place(A, 1), rollout.Place(B, 0)], waited, 500.0)
    assert found == A
    assert rollout.first([rollout.Place(B, 0)], waited, 900.0)[0] == B


# ---- what it is made of while it waits ------------------------------------------------------------------------------


def made(image: str, **spec: Any) -> dict[str, Any]:
    """The Deployment of an index, by the operator of an image."""
    return resources.index(index(**spec), where(), settings(image=image), suspended=False)[-1]


def test_an_index_that_waits_keeps_its_pods_and_is_scaled() -> None:
    there, wanted = made("old"), made("new", replicas=3)
    assert rollout.may_keep(wanted, there)
    body = rollout.kept(wanted, there)
    assert body["spec"]["replicas"] == 3
    assert body["spec"]["template"] == there["spec"]["template"]
    assert rollout.release_of(body) == rollout.release_of(there)


@pytest.mark.parametrize(
    "changed",
    [
        {"pod": {"nodeSelector": {"disk": "fast"}}},
        {"storage": {"s3": {"prefix": "elsewhere"}}},
        {"source": {"dataset": {"name": "r", "idColumn": "i", "vectorColumn": "v", "follow": "Latest"}}},
    ],
    ids=["pod", "storage", "follows"],
)
def test_a_change_of_the_spec_that_pods_are_made_of_waits_for_nobody(changed: dict[str, Any]) -> None:
    assert not rollout.may_keep(made("new", **changed), made("old"))


def test_a_change_that_pods_are_not_made_of_replaces_none_out_of_turn() -> None:
    assert rollout.may_keep(made("new", hnsw={"efSearch": 99}, deletionPolicy="Delete"), made("old"))


def test_one_that_does_not_say_what_was_asked_of_it_is_kept_and_says_so_then() -> None:
    there, wanted = made("old"), made("new")
    del there["metadata"]["annotations"][names.ASKED_ANNOTATION]
    assert rollout.may_keep(wanted, there)
    asked = wanted["metadata"]["annotations"][names.ASKED_ANNOTATION]
    assert rollout.kept(wanted, there)["metadata"]["annotations"][names.ASKED_ANNOTATION] == asked


# ---- how far it is --------------------------------------------------------------------------------------------------


def test_progress_tells_what_is_still_to_be_replaced() -> None:
    assert rollout.progress([deployment()]) == ""
    assert "products-shard-0 1 of 2" in rollout.progress([deployment(updated=1)])
    assert rollout.progress([deployment(replicas=3)]) != ""  # an old one is still there
    assert "1 of 2 beside 1 older" in rollout.progress([deployment(updated=1, replicas=2)])
    assert rollout.progress([deployment(available=0)]) == ""  # all are new; Ready tells the rest


def test_what_the_cluster_refuses_to_make_is_told() -> None:
    quota = [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}]
    assert rollout.refused([deployment(), deployment(conditions=quota)]) == "exceeded quota"
    assert rollout.refused([deployment()]) == ""


@pytest.mark.parametrize(
    "changed",
    [
        {"replicas": 2},
        {"pod": {"resources": {"requests": {"cpu": "0.5"}}}},
        {"storage": {"s3": {"prefix": "elsewhere"}}},
    ],
    ids=["replicas", "pod", "storage"],
)
def test_what_the_spec_says_of_pods_and_the_cluster_does_not_have_yet_is_told(
    changed: dict[str, Any],
) -> None:
    there, wanted = made("one"), made("one", **changed)
    assert rollout.unapplied([wanted], [there]) == "not yet as the spec says: products-shard-0"
    assert rollout.unapplied([wanted], [wanted]) == ""
    assert (
        rollout.unapplied([made("two")], [there]) != ""
    )  # nor what the operator itself would make otherwise
    assert rollout.unapplied([rollout.kept(made("two"), there)], [there]) == ""


def test_a_deployment_that_is_missing_or_going_is_not_as_the_spec_says() -> None:
    wanted = resources.index(index(shards=6), where(), settings(), suspended=False)
    told = rollout.unapplied(wanted, [])
    assert "products-shard-0, products-shard-1" in told
    assert told.endswith("products-shard-3, …")
    there = [{**one, "metadata": {**one["metadata"], "deletionTimestamp": "now"}} for one in wanted[-1:]]
    assert rollout.unapplied(wanted[-1:], there) == "not yet as the spec says: products-shard-5"
    assert rollout.unapplied((), []) == ""


def test_quantities_that_the_api_server_writes_in_its_own_way_are_no_other_template() -> None:
    wanted = made("one", pod={"resources": {"requests": {"cpu": "0.5"}}})
    there = copy.deepcopy(wanted)
    there["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "500m"
    assert rollout.unapplied([wanted], [there]) == ""


def test_what_sleeps_and_what_is_to_sleep_differ() -> None:
    awake, asleep = (
        resources.index(index(), where(), settings(), suspended=suspended)[-1] for suspended in (False, True)
    )
    assert rollout.unapplied([asleep], [awake]) != ""
    assert rollout.unapplied([awake], [asleep]) != ""
    assert rollout.unapplied([asleep], [asleep]) == ""
