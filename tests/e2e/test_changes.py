"""What a user changes in a VectorIndex while it is used: its search effort, its graph, whether it runs at all."""

import time

from e2e.acts import DIMENSION, QUIET, drop, index_pods, make
from e2e.load import Load
from e2e.release import Release
from e2e.waiting import until


def test_search_effort_and_graph_are_changed_under_load(lakehouse: Release) -> None:
    """efSearch is taken online, by the pods that are there; another m is a rebuild that refuses no write."""
    make(lakehouse, "relinked", replicas=2, hnsw={"m": 8})
    pods = {pod["metadata"]["uid"] for pod in index_pods(lakehouse, "relinked")}
    with Load(lakehouse, "relinked", DIMENSION) as load, lakehouse.http("read") as http:

        def told() -> dict[str, object]:
            return dict(http.get("/v1/vectors/index/relinked").raise_for_status().json()["params"])

        load.wait_for(QUIET)
        for name, value, field in (("efSearch", 111, "ef_search"), ("m", 12, "m")):
            changed = {"spec": {"hnsw": {name: value}}}
            lakehouse.cluster.patch("VectorIndex", lakehouse.namespace, "relinked", changed)
            until(
                f"{name} {value} to be served",
                told,
                lambda seen, field=field, value=value: seen.get(field) == value,  # type: ignore[misc]
                seconds=120,
            )
            load.wait_for(QUIET)
        lakehouse.cluster.wait_for_condition("VectorIndex", lakehouse.namespace, "relinked", "UpToDate")
    assert load.failures == []
    assert load.check() > 0
    assert {pod["metadata"]["uid"] for pod in index_pods(lakehouse, "relinked")} == pods
    drop(lakehouse, "relinked")


def test_an_index_that_is_suspended_has_no_pods_and_comes_back_as_it_was(lakehouse: Release) -> None:
    make(lakehouse, "slept", shards=2)
    with Load(lakehouse, "slept", DIMENSION) as load:
        load.wait_for(QUIET)
    assert load.failures == []
    lakehouse.cluster.patch("VectorIndex", lakehouse.namespace, "slept", {"spec": {"suspend": True}})
    until("its pods to be gone", lambda: index_pods(lakehouse, "slept"), lambda pods: not pods, seconds=90)
    time.sleep(2)
    with lakehouse.http("read") as http:
        refused = http.post("/v1/vectors/index/slept/count", json={})
    assert refused.status_code == 503, refused.text
    assert f"suspended, as VectorIndex/{lakehouse.namespace}/slept says" in refused.text
    lakehouse.cluster.patch("VectorIndex", lakehouse.namespace, "slept", {"spec": {"suspend": False}})
    until(
        "it to be served again",
        lambda: lakehouse.cluster.status("VectorIndex", lakehouse.namespace, "slept").get("readyReplicas"),
        lambda ready: ready == 1,
        seconds=90,
    )
    lakehouse.ready("slept")
    assert load.check() > 0
    drop(lakehouse, "slept")
