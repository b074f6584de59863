"""A steady load of adds and searches while the index's pods, the operator, the store and a node come and go.

The client keeps a journal of every acknowledgement, and repeats as documented.  At the end nothing acknowledged
is missing; and where nothing durable was taken away, no request failed.
"""

import time
from typing import cast

import pytest

from e2e import images
from e2e.acts import (
    DIMENSION,
    QUIET,
    drop,
    index_pods,
    kill_operator,
    kill_writer,
    make,
    names,
    wait_for_replicas,
)
from e2e.engines import NodeControl
from e2e.images import Image
from e2e.load import Load
from e2e.release import Release
from e2e.waiting import until

KUBELET_AWAY_S = 60.0


def test_scaling_up_and_down(lakehouse: Release) -> None:
    make(lakehouse, "scaled")
    with Load(lakehouse, "scaled", DIMENSION) as load:
        load.wait_for(QUIET)
        for replicas in (3, 2):
            lakehouse.cluster.kubectl(
                "scale", "vix/scaled", f"--replicas={replicas}", namespace=lakehouse.namespace
            )
            wait_for_replicas(lakehouse, "scaled", replicas)
            load.wait_for(QUIET)
    assert load.failures == []
    assert load.check() > 0
    drop(lakehouse, "scaled")


def test_a_rolling_update_of_two_shards(lakehouse: Release) -> None:
    make(lakehouse, "rolled", shards=2, replicas=2)
    before = names(index_pods(lakehouse, "rolled"))
    assert len(before) == 4
    with Load(lakehouse, "rolled", DIMENSION) as load:
        load.wait_for(QUIET)
        changed = {"pod": {"resources": {"requests": {"cpu": "21m", "memory": "128Mi"}}}}
        lakehouse.cluster.patch("VectorIndex", lakehouse.namespace, "rolled", {"spec": changed})
        until(
            "four new pods",
            lambda: names(index_pods(lakehouse, "rolled")),
            lambda now: len(now) == 4 and not now & before,
            seconds=180,
        )
        lakehouse.cluster.wait_for_condition("VectorIndex", lakehouse.namespace, "rolled", "UpToDate")
        wait_for_replicas(lakehouse, "rolled", 2)
        load.wait_for(QUIET)
    assert load.failures == []
    assert load.check() > 0
    drop(lakehouse, "rolled")


@pytest.mark.ends_operator
def test_an_upgrade_of_the_operator(lakehouse: Release, images_loaded: dict[str, Image]) -> None:
    """Another image of operator and data plane: indexes are updated one pod at a time, gateway and pool roll."""
    make(lakehouse, "upgraded", replicas=2)
    changed = {}
    for target in ("dataplane", "operator"):
        other = images.renamed(lakehouse.cluster.engine, images_loaded[target], "next")
        changed[target] = {"tag": images.loaded(lakehouse.cluster.engine, other).tag}
    with Load(lakehouse, "upgraded", DIMENSION) as load:
        load.wait_for(QUIET)
        lakehouse.upgrade(images=changed)
        until(
            "index pods of the new image",
            lambda: [pod["spec"]["containers"][0]["image"] for pod in index_pods(lakehouse, "upgraded")],
            lambda found: len(found) == 2 and all(image.endswith(":next") for image in found),
            seconds=180,
        )
        wait_for_replicas(lakehouse, "upgraded", 2)
        load.wait_for(QUIET)
        lakehouse.upgrade()
        until(
            "index pods of the old image",
            lambda: [pod["spec"]["containers"][0]["image"] for pod in index_pods(lakehouse, "upgraded")],
            lambda found: len(found) == 2 and not any(image.endswith(":next") for image in found),
            seconds=180,
        )
        wait_for_replicas(lakehouse, "upgraded", 2)
    assert load.failures == []
    assert load.check() > 0
    drop(lakehouse, "upgraded")


def test_the_writer_is_killed(lakehouse: Release) -> None:
    """Twice: the one that wrote, then the one that took over."""
    make(lakehouse, "killed", replicas=2)
    with Load(lakehouse, "killed", DIMENSION) as load:
        for _ in range(2):
            load.wait_for(QUIET)
            kill_writer(lakehouse, "killed")
            load.wait_for(QUIET)
            wait_for_replicas(lakehouse, "killed", 2)
    assert load.failures == []
    assert load.check() > 0
    drop(lakehouse, "killed")


@pytest.mark.ends_operator
def test_the_operator_is_killed_while_it_scales(lakehouse: Release) -> None:
    make(lakehouse, "orphaned")
    with Load(lakehouse, "orphaned", DIMENSION) as load:
        load.wait_for(QUIET)
        lakehouse.cluster.kubectl("scale", "vix/orphaned", "--replicas=2", namespace=lakehouse.namespace)
        kill_operator(lakehouse)
        load.wait_for(QUIET)
        wait_for_replicas(lakehouse, "orphaned", 2)
    assert load.failures == []
    assert load.check() > 0
    lakehouse.cluster.wait_for_rollout(lakehouse.namespace, f"{lakehouse.name}-operator")
    drop(lakehouse, "orphaned")


def test_the_store_is_away_for_a_while(lakehouse: Release) -> None:
    """Writes may be refused meanwhile; what was acknowledged stays, and afterwards all goes on."""
    make(lakehouse, "stranded")
    with Load(lakehouse, "stranded", DIMENSION) as load:
        load.wait_for(QUIET)
        lakehouse.store.stop()
        lakehouse.store.start()
        load.wait_for(3 * QUIET)
    assert load.check() > 0
    lakehouse.ready("stranded")
    drop(lakehouse, "stranded")


def test_a_node_loses_its_kubelet_for_a_minute(lakehouse: Release) -> None:
    """The node of the store, and of half the rest: its pods go on serving, and it comes back; no request fails."""
    engine = lakehouse.cluster.engine
    if not hasattr(engine, "stop_kubelet"):
        pytest.skip("this engine does not own its nodes")
    nodes = cast("NodeControl", engine)
    scale_gateway(lakehouse, 2)
    make(lakehouse, "nodeless", replicas=2)
    node = lakehouse.store.node
    with Load(lakehouse, "nodeless", DIMENSION) as load:
        load.wait_for(QUIET)
        nodes.stop_kubelet(node)
        stopped = time.monotonic()
        try:
            until("the node to be noticed", lambda: node_status(lakehouse, node) == "Unknown", seconds=120)
            load.wait_for(QUIET)
            assert lakehouse.store.is_up(), "no new connection reaches the store"
            time.sleep(max(0.0, stopped + KUBELET_AWAY_S - time.monotonic()))
        finally:
            nodes.start_kubelet(node)
        until("the node to be Ready", lambda: node_status(lakehouse, node) == "True", seconds=60)
        wait_for_replicas(lakehouse, "nodeless", 2)
        load.wait_for(QUIET)
    assert load.failures == []
    assert load.check() > 0
    drop(lakehouse, "nodeless")
    scale_gateway(lakehouse, 1)


def scale_gateway(release: Release, replicas: int) -> None:
    """A Service of one pod takes no new connection while that pod's node is silent."""
    name = f"{release.name}-gateway"
    release.cluster.kubectl(
        "scale", f"deployment/{name}", f"--replicas={replicas}", namespace=release.namespace
    )
    release.cluster.wait_for_rollout(release.namespace, name)


def node_status(release: Release, node: str) -> str:
    path = "{.status.conditions[?(@.type=='Ready')].status}"
    return release.cluster.kubectl("get", "node", node, f"-o=jsonpath={path}")
