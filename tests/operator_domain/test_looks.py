"""What pods' answers come to: an index serves when every shard has a pod that says so now, and not otherwise."""

from dataclasses import replace

from cluster_samples import BEFORE, LIFE, deployment, pod, record
from lakehouse.control import facts
from lakehouse_operator import looks, names, resources
from lakehouse_operator.pods import cut_off, state_of


def test_an_index_serves_when_every_shard_has_a_pod_that_serves() -> None:
    whole = [pod(0, 0, items=3, position=7), pod(1, 0, items=2, position=6), pod(0, 1, items=4, position=9)]
    found = looks.served(record(shards=2), whole, 2, 64)
    assert found.serving
    assert (found.items, found.position) == (7, f"{LIFE.hex}:7.9")  # of each shard the pod that is ahead
    assert (found.replicas, found.ready_replicas) == (1, 1)
    missing = looks.served(record(shards=2), whole[:2], 2, 64)
    assert not missing.serving
    assert missing.items is None
    assert "shard 1 has no pod that serves" in missing.detail


def test_a_pod_counts_only_when_the_cluster_sends_to_it_and_it_says_it_serves_this_life() -> None:
    for wrong in (
        pod(ready=False),
        pod(life=None, detail="connection refused"),
        pod(serving=False),
        pod(life=BEFORE),
        pod(damage="the log has a hole"),
    ):
        found = looks.served(record(), [wrong], 1, 64)
        assert not found.serving
        assert found.ready_replicas == 0
    assert (
        "connection refused"
        in looks.served(record(), [pod(life=None, detail="connection refused")], 1, 64).detail
    )


def test_the_life_that_was_replaced_serves_until_the_next_is_loaded() -> None:
    found = looks.served(record(number=2, ends=BEFORE), [pod(life=BEFORE, items=5)], 1, 64)
    assert found.serving
    assert found.behind == 1
    assert found.items is None  # of the life that counts nobody knows yet


def test_damage_is_what_every_pod_of_a_shard_says() -> None:
    assert looks.served(record(), [pod(damage="a hole"), pod(1, damage="a hole")], 1, 64).damaged == "a hole"
    assert looks.served(record(), [pod(damage="a hole"), pod(1)], 1, 64).damaged == ""


def test_ef_search_is_what_is_not_asked_for_as_long_as_one_pod_uses_it() -> None:
    assert looks.served(record(), [pod(), pod(1, ef_search=32)], 1, 64).ef_search == 32
    assert looks.served(record(), [pod(), pod(1)], 1, 64).ef_search == 64
    assert looks.served(record(), [pod(life=None)], 1, 64).ef_search is None


def test_nothing_is_served_where_nothing_lives() -> None:
    assert not looks.served(None, [pod()], 1, 64).serving
    assert facts.life(None) is None


def test_a_bucket_that_is_away_does_not_hide_what_pods_say() -> None:
    counts = looks.remembered({"position": f"{LIFE.hex}:7"}, 1)
    assert looks.served(counts, [pod(position=9)], 1, 64).serving
    assert not looks.served(counts, [pod(life=BEFORE)], 1, 64).serving
    assert looks.remembered({}, 1) is None
    assert looks.remembered({"position": "nonsense"}, 1) is None


def test_suspended_is_what_the_deployments_say_and_not_how_many_pods_there_are() -> None:
    asleep = {names.SUSPENDED_ANNOTATION: "true"}
    assert looks.is_suspended([deployment(annotations=asleep)], asked=False, alive=True)
    assert not looks.is_suspended([deployment(asked=0)], asked=True, alive=True)
    assert looks.is_suspended([], asked=True, alive=True)
    assert not looks.is_suspended([], asked=True, alive=False)
    assert resources.suspended(deployment(annotations=asleep))


def test_the_selector_is_of_one_shards_pods() -> None:
    assert looks.selector("products") == (
        "app.kubernetes.io/component=index,lakehouse.agentview.dev/index=products,lakehouse.agentview.dev/shard=0"
    )


def test_a_pods_state_is_read_for_one_index() -> None:
    said = {
        "ready": True,
        "detail": "",
        "indexes": [
            {
                "name": "products",
                "life": LIFE.hex,
                "record": 3,
                "ef_search": 64,
                "serving": True,
                "shards": [{"shard": 0, "items": 2, "position": 5, "damage": ""}],
            }
        ],
    }
    found = state_of(said, "products")
    assert found is not None
    assert (found.life, found.record, found.serving, found.shards[0].items) == (LIFE.hex, 3, True, 2)
    assert state_of(said, "other") is None
    unready = state_of(said | {"ready": False, "detail": "loading"}, "products")
    assert unready is not None
    assert (unready.serving, unready.detail) == (False, "loading")


def test_pods_that_do_not_reach_the_bucket_are_named_with_what_the_first_says() -> None:
    well, one, other = pod(), replace(pod(1), cut_off="refused"), replace(pod(2), cut_off="no answer")
    assert looks.cut_off([well]) == ""
    assert looks.cut_off([well, one]) == "products-0-1: refused"
    assert looks.cut_off([well, one, other]) == "products-0-1 (and 1 more): refused"


def test_what_a_pod_says_of_its_bucket_is_read_where_it_says_it() -> None:
    assert cut_off({"store": {"trouble": "refused"}}) == "refused"
    assert cut_off({"store": {"trouble": ""}}) == cut_off({"store": {}}) == cut_off({}) == ""
