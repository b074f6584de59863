"""What several tests do to an index, its pods, and the operator.

What this does not do: judge what comes of it.
"""

import httpx

from e2e.access import Body
from e2e.release import PORT, Release, vector_index
from e2e.waiting import until

DIMENSION = 16
INDEX_LABEL = "lakehouse.agentview.dev/index"
QUIET = 20
"""Acknowledged writes that show that the load goes on."""


def index_pods(release: Release, index: str) -> list[Body]:
    labels = f"{INDEX_LABEL}={index},app.kubernetes.io/component=index"
    pods = release.cluster.all("Pod", release.namespace, labels)
    return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def restarts(pods: list[Body]) -> dict[str, int]:
    """How often each pod's containers were started anew, by its uid: pods that go on have the same."""
    return {
        pod["metadata"]["uid"]: sum(one["restartCount"] for one in pod["status"]["containerStatuses"])
        for pod in pods
    }


def names(pods: list[Body]) -> set[str]:
    return {pod["metadata"]["name"] for pod in pods}


def wait_for_replicas(release: Release, index: str, count: int) -> None:
    until(
        f"{index} to have {count} replicas",
        lambda: release.cluster.status("VectorIndex", release.namespace, index),
        lambda status: (status.get("replicas"), status.get("readyReplicas")) == (count, count),
        seconds=120,
    )


def make(release: Release, name: str, **spec: object) -> None:
    release.apply(vector_index(name, DIMENSION, **spec))
    release.ready(name)


def drop(release: Release, name: str) -> None:
    release.cluster.delete("VectorIndex", release.namespace, name)
    release.cluster.wait_until_gone("VectorIndex", release.namespace, name)


def writes(release: Release, pod: Body) -> bool:
    """Whether this pod is the writer of a shard."""
    headers = {"Authorization": f"Bearer {release.keys['admin']}"}
    with release.cluster.reach_pod(pod, PORT) as address:
        try:
            state = httpx.get(f"http://{address}/internal/state", headers=headers, timeout=5)
        except httpx.HTTPError:
            return False
    found = state.json()["indexes"] if state.status_code == 200 else []
    return any(shard["writer"] for index in found for shard in index["shards"])


def kill_writer(release: Release, index: str) -> str:
    """Delete a pod that writes, without warning; its name."""
    pods = until(
        f"a pod of {index} that writes",
        lambda: [pod for pod in index_pods(release, index) if writes(release, pod)],
    )
    name = str(pods[0]["metadata"]["name"])
    release.cluster.kubectl("delete", "pod", name, "--force", "--grace-period=0", namespace=release.namespace)
    return name


def wait_for_leader(release: Release) -> None:
    """Until the operator that is there leads: one that was killed before it could let the Lease go is waited for."""
    until(
        "the operator to lead",
        lambda: leader(release).rpartition("_")[0],
        lambda holder: holder in [pod["metadata"]["name"] for pod in release.operator_pods()],
    )


def leader(release: Release) -> str:
    """Who holds the operator's Lease."""
    return release.cluster.kubectl(
        "get",
        "lease",
        f"{release.name}-operator",
        "-o",
        "jsonpath={.spec.holderIdentity}",
        namespace=release.namespace,
    )


def kill_operator(release: Release) -> None:
    for pod in release.operator_pods():
        name = pod["metadata"]["name"]
        release.cluster.kubectl(
            "delete", "pod", name, "--force", "--grace-period=0", namespace=release.namespace
        )
