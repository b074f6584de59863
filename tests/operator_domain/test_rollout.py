"""Upgrades of the operator reach one index at a time, and one that is stuck holds up nobody."""

from cluster_samples import NAMESPACE, deployment
from lakehouse_operator import names, rollout

STUCK = [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]


def waits(name: str, *there: dict[str, object]) -> str:
    return rollout.waits_for((NAMESPACE, name), there, "new")


def test_the_first_by_name_goes_first_and_the_others_wait_for_it() -> None:
    there = [deployment("b", "old"), deployment("a", "old")]
    assert waits("a", *there) == ""
    assert "shop/a" in waits("b", *there)


def test_the_next_goes_when_the_one_before_serves_again() -> None:
    old = deployment("b", "old")
    assert "shop/a" in waits("b", deployment("a", updated=1), old)
    assert "shop/a" in waits("b", deployment("a", available=1), old)
    assert "shop/a" in waits("b", deployment("a", observedGeneration=0), old)
    assert waits("b", deployment("a"), old) == ""


def test_one_that_is_stuck_holds_up_nobody() -> None:
    assert waits("b", deployment("a", available=0, conditions=STUCK), deployment("b", "old")) == ""


def test_what_is_new_or_suspended_waits_for_nobody() -> None:
    asleep = deployment("b", "old", annotations={names.SUSPENDED_ANNOTATION: "true"})
    assert waits("b", deployment("a", "old"), asleep) == ""
    assert waits("c", deployment("a", "old")) == ""
    assert waits("b", deployment("a", "old"), deployment("b")) == ""


def test_progress_tells_what_is_still_to_be_replaced() -> None:
    assert rollout.progress([deployment()]) == ""
    assert "products-shard-0 1 of 2" in rollout.progress([deployment(updated=1)])
    assert rollout.progress([deployment(replicas=3)]) != ""  # an old one is still there
    assert rollout.progress([deployment(available=0)]) == ""  # all are new; Ready tells the rest


def test_what_the_cluster_refuses_to_make_is_told() -> None:
    quota = [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}]
    assert rollout.refused([deployment(), deployment(conditions=quota)]) == "exceeded quota"
    assert rollout.refused([deployment()]) == ""
