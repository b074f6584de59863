"""Hundreds of resources that want nothing: they settle, and the operator then costs next to nothing."""

import time

import pytest

from e2e.access import Body
from e2e.release import Release, dataset, vector_index
from e2e.waiting import until

SUSPENDED = 200
DATASETS = 200
MEMORY_BYTES_MAX = 250 << 20
CPU_SHARE_MAX = 0.02
MINUTE_S = 60.0
MINUTES = 6
"""More than the interval in which the operator looks at everything again."""


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_hundreds_of_idle_resources(lakehouse: Release) -> None:
    cluster, namespace = lakehouse.cluster, lakehouse.namespace
    lakehouse.store.client.put_object(Bucket=lakehouse.bucket, Key="raw/many/a.csv", Body=b"id,price\na,1\n")
    indexes = [vector_index(f"many-{n}", suspend=True) for n in range(SUSPENDED)]
    datasets = [dataset(f"many-{n}", f"s3://{lakehouse.bucket}/raw/many/a.csv") for n in range(DATASETS)]
    lakehouse.apply(*indexes, *datasets)
    until(
        "every index to be Suspended",
        lambda: unsettled(lakehouse, "VectorIndex", "Suspended"),
        lambda left: not left,
        seconds=300,
    )
    until(
        "every dataset to be Ready",
        lambda: unsettled(lakehouse, "Dataset", ""),
        lambda left: not left,
        seconds=2400,
    )
    time.sleep(MINUTE_S)
    shares = [cpu_share_of_a_minute(lakehouse) for _ in range(MINUTES)]
    memory = metric(lakehouse, "process_resident_memory_bytes")
    print(
        f"the operator with {SUSPENDED} + {DATASETS} resources: {memory / 2**20:.0f} MiB, "
        f"{', '.join(f'{share:.2%}' for share in shares)} of a core in each of {MINUTES} minutes"
    )
    assert memory < MEMORY_BYTES_MAX
    assert max(shares) < CPU_SHARE_MAX
    cluster.kubectl("delete", "vix,dset", "--all", "--wait=false", namespace=namespace)
    until(
        "all of them to be gone",
        lambda: [cluster.all(kind, namespace) for kind in ("VectorIndex", "Dataset")],
        lambda left: not any(left),
        seconds=300,
    )


def unsettled(release: Release, kind: str, reason: str) -> list[str]:
    """Names of resources whose Ready condition is not what it comes to: this reason, or True."""

    def settled(body: Body) -> bool:
        for one in body.get("status", {}).get("conditions", []):
            if one["type"] == "Ready":
                return bool(one["reason"] == reason if reason else one["status"] == "True")
        return False

    return [
        body["metadata"]["name"]
        for body in release.cluster.all(kind, release.namespace)
        if body["metadata"]["name"].startswith("many-") and not settled(body)
    ]


def metric(release: Release, name: str) -> float:
    """One number of the operator's own metrics, read through the API server."""
    path = f"/api/v1/namespaces/{release.namespace}/services/{release.name}-operator:8080/proxy/metrics"
    text = release.cluster.kubectl("get", "--raw", path)
    found = [float(line.split()[-1]) for line in text.splitlines() if line.split()[:1] == [name]]
    assert len(found) == 1, f"{name} in:\n{text}"
    return found[0]


def cpu_share_of_a_minute(release: Release) -> float:
    """What the operator takes of a core from now on."""
    before, began = cpu_seconds(release), time.monotonic()
    time.sleep(MINUTE_S)
    return (cpu_seconds(release) - before) / (time.monotonic() - began)


def cpu_seconds(release: Release) -> float:
    return metric(release, "process_cpu_seconds_total")
