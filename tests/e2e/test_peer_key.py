"""The key that pods show each other: changed, or gone while nobody keeps it, and no pod is started anew."""

import base64
import json
import secrets
import time

import httpx
import pytest

from e2e.acts import DIMENSION, QUIET, drop, index_pods, make, restarts, wait_for_leader
from e2e.load import Load
from e2e.release import PORT, Release
from e2e.waiting import until

pytestmark = pytest.mark.soak  # minutes of waiting for kubelets
SECRET, FIELD = "lakehouse-peer-key", "peer-key"
AGAIN_S = 100.0
"""From a change until every process has it: the kubelet's 90 s, and some for looking."""
VECTOR = [1.0] * DIMENSION


def key(release: Release) -> str:
    """The one in the Secret; empty where there is none."""
    found = release.cluster.get("Secret", release.namespace, SECRET)
    return base64.b64decode(found["data"][FIELD]).decode() if found else ""


def pods(release: Release, index: str) -> dict[str, int]:
    """Uid and restarts of every pod that has the key."""
    return restarts([*index_pods(release, index), *release.pods("gateway"), *release.pods("pool")])


def strangers(release: Release, index: str, shown: str) -> list[str]:
    """Pods of the index and of the pool that do not take this key."""
    refused = []
    for pod in [*index_pods(release, index), *release.pods("pool")]:
        with release.cluster.reach_pod(pod, PORT) as address:
            headers = {"authorization": f"Bearer {shown}"}
            answer = httpx.get(f"http://{address}/internal/state", headers=headers, timeout=5)
        if answer.status_code != 200:
            refused.append(pod["metadata"]["name"])
    return refused


def revision(release: Release) -> int:
    """Helm's newest of the release."""
    found = release.cluster.helm("history", release.name, "--namespace", release.namespace, "-o", "json")
    return int(json.loads(found)[-1]["revision"])


def roll_back(release: Release, to: int) -> None:
    release.cluster.helm(
        "rollback", release.name, str(to), "--namespace", release.namespace, "--wait", "--timeout", "180s"
    )


@pytest.mark.timeout(600)
def test_a_changed_key_fails_no_request_and_starts_no_pod(lakehouse: Release) -> None:
    make(lakehouse, "rekeyed", shards=2, replicas=2)
    before, new = pods(lakehouse, "rekeyed"), secrets.token_hex(16)
    with Load(lakehouse, "rekeyed", DIMENSION) as load:
        load.wait_for(QUIET)
        lakehouse.cluster.patch("Secret", lakehouse.namespace, SECRET, {"stringData": {FIELD: new}})
        until(
            "every pod to take the new key",
            lambda: strangers(lakehouse, "rekeyed", new),
            lambda found: not found,
            seconds=AGAIN_S,
        )
        load.wait_for(QUIET)
    assert load.failures == []
    assert load.check() > 0
    assert pods(lakehouse, "rekeyed") == before
    lakehouse.ready("rekeyed")
    drop(lakehouse, "rekeyed")


@pytest.mark.ends_operator
@pytest.mark.timeout(900)
def test_a_key_that_was_deleted_while_the_operator_was_down_is_replaced_and_helm_goes_on(
    lakehouse: Release,
) -> None:
    """Nobody knows the old one then: pods read the new one where the kubelet brings it."""
    operator = f"deployment/{lakehouse.name}-operator"
    make(lakehouse, "unkeyed", shards=2)
    with lakehouse.client("write") as client:
        client.add("unkeyed", [f"i{n}" for n in range(20)], [VECTOR] * 20)
    before, old, installed = pods(lakehouse, "unkeyed"), key(lakehouse), revision(lakehouse)

    lakehouse.cluster.kubectl("scale", operator, "--replicas=0", namespace=lakehouse.namespace)
    until("the operator to be gone", lakehouse.operator_pods, lambda found: not found)
    lakehouse.cluster.delete("Secret", lakehouse.namespace, SECRET)
    lakehouse.cluster.kubectl("scale", operator, "--replicas=1", namespace=lakehouse.namespace)
    lakehouse.cluster.wait_for_rollout(lakehouse.namespace, f"{lakehouse.name}-operator")
    wait_for_leader(lakehouse)
    new = until("another key", lambda: key(lakehouse), lambda found: found not in ("", old))

    began_s = time.monotonic()
    served(lakehouse, new)
    print(f"all pods had the new key after {time.monotonic() - began_s:.1f} s")
    assert pods(lakehouse, "unkeyed") == before

    lakehouse.upgrade()
    assert key(lakehouse) == new
    roll_back(lakehouse, installed)  # whose manifest has the old key
    served(lakehouse, key(lakehouse))
    roll_back(lakehouse, installed + 1)
    served(lakehouse, key(lakehouse))
    lakehouse.upgrade()
    assert pods(lakehouse, "unkeyed") == before
    drop(lakehouse, "unkeyed")


def served(release: Release, shown: str) -> None:
    """Wait until every pod takes this key, and the index answers through the gateway, from both shards."""
    until(
        "every pod to take the key",
        lambda: strangers(release, "unkeyed", shown),
        lambda found: not found,
        seconds=AGAIN_S,
    )
    release.ready("unkeyed", seconds=30)
    with release.client("read") as client:
        found = until(
            "an answer through the gateway", lambda: client.search("unkeyed", VECTOR, k=50), seconds=30
        )
    assert {hit.id for hit in found} == {f"i{n}" for n in range(20)}
