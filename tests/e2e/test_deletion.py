"""Deleting resources and whole namespaces: with the operator there, without it, and without its Secret."""

from collections.abc import Iterator, Mapping

import pytest

from e2e import release
from e2e.access import Body, Cluster
from e2e.images import Image
from e2e.release import SECRET, Release, dataset, vector_index
from e2e.store import Store
from e2e.waiting import until

HOME = "lakehouse-e2e-wide"
PLAIN, SECRETLESS, UNATTENDED = "e2e-gone-up", "e2e-gone-secret", "e2e-gone-down"
POLICIES = {PLAIN: "Delete", SECRETLESS: "Delete", UNATTENDED: "Retain"}
GONE_S_MAX = 60


@pytest.fixture(scope="module")
def wide(
    cluster: Cluster, lakehouse: Release, minio_pod: Store, images_loaded: dict[str, Image]
) -> Iterator[Release]:
    """A second release, whose operator watches namespaces beside its own; the CRDs are the first one's.

    In each namespace there are a Ready index and a Ready Dataset.
    """
    for namespace in POLICIES:
        cluster.fresh_namespace(namespace)
        cluster.apply(minio_pod.secret(namespace, SECRET))
    changes: Body = {
        "watchNamespaces": [HOME, *POLICIES],
        "crds": {"enabled": False},
        "pool": {"replicas": 1},
    }
    with release.installed(cluster, minio_pod, images_loaded, HOME, name="wide", **changes) as found:
        fill(found, POLICIES | {HOME: "Delete"})
        yield found
    cluster.kubectl("delete", "namespace", HOME, *POLICIES, "--ignore-not-found", "--timeout=120s")


def fill(wide: Release, policies: Mapping[str, str]) -> None:
    """One index and one Dataset in each namespace, with that deletion policy."""
    for namespace, policy in policies.items():
        key = f"{namespace}/raw/a.csv"
        wide.store.client.put_object(Bucket=wide.bucket, Key=key, Body=b"id,price\na,1\n")
        wide.cluster.apply(
            [
                vector_index("gone", deletionPolicy=policy),
                dataset("gone", f"s3://{wide.bucket}/{key}", deletionPolicy=policy),
            ],
            namespace=namespace,
        )
    for namespace in policies:
        wide.cluster.wait_for_condition("VectorIndex", namespace, "gone", "Ready", seconds=120)
        wide.cluster.wait_for_condition("Dataset", namespace, "gone", "Ready", seconds=120)
        assert wide.store.keys(wide.bucket, f"{namespace}/_vectors/gone/")


def delete(wide: Release, *namespaces: str) -> None:
    """Delete namespaces; each is gone in time."""
    wide.cluster.kubectl("delete", "namespace", *namespaces, "--wait=false")
    until(
        f"{', '.join(namespaces)} to be gone",
        lambda: [name for name in namespaces if wide.cluster.namespace_exists(name)],
        lambda left: not left,
        seconds=GONE_S_MAX,
    )


def data(wide: Release, namespace: str) -> list[str]:
    """What is left in the bucket of a namespace's items and rows."""
    keys = wide.store.keys(wide.bucket, f"{namespace}/")
    return [key for key in keys if key.endswith((".lhv1", ".parquet"))]


def test_namespaces_go_with_the_operator_up_also_when_the_secret_went_first(wide: Release) -> None:
    """Under Delete the data goes too, where there is a key to the bucket."""
    wide.cluster.delete("Secret", SECRETLESS, SECRET)
    delete(wide, PLAIN, SECRETLESS)
    assert not data(wide, PLAIN)


def test_a_namespace_goes_with_the_operator_down(wide: Release) -> None:
    """Under Retain nothing waits for it; and the data stays."""
    wide.cluster.kubectl("scale", "deployment/wide-operator", "--replicas=0", namespace=HOME)
    delete(wide, UNATTENDED)
    assert wide.store.keys(wide.bucket, f"{UNATTENDED}/_vectors/gone/")


def test_the_operators_own_namespace_goes(wide: Release) -> None:
    """The cluster ends the operator first, and nothing waits for one that is gone; under Delete the data goes too."""
    wide.cluster.kubectl("scale", "deployment/wide-operator", "--replicas=1", namespace=HOME)
    wide.cluster.wait_for_rollout(HOME, "wide-operator")
    delete(wide, HOME)
    assert not data(wide, HOME)


def test_a_dropped_index_leaves_only_what_the_log_needs(lakehouse: Release) -> None:
    """Under Delete the items are gone from the bucket, and the name is free for another life."""
    cluster, namespace = lakehouse.cluster, lakehouse.namespace
    lakehouse.apply(vector_index("dropped", 2, deletionPolicy="Delete"))
    lakehouse.ready("dropped")
    with lakehouse.client() as client:
        client.add("dropped", ["a"], [[1.0, 0.0]])
    cluster.delete("VectorIndex", namespace, "dropped", "--timeout=60s")
    keys = lakehouse.store.keys(lakehouse.bucket, f"{namespace}/_vectors/dropped")
    assert not [key for key in keys if key.endswith(".lhv1")]
    lakehouse.apply(vector_index("dropped", 3))
    lakehouse.ready("dropped")
    with lakehouse.client() as client:
        assert client.count("dropped") == 0
    cluster.delete("VectorIndex", namespace, "dropped")


def test_an_index_that_is_deleted_and_applied_again_has_its_items(lakehouse: Release) -> None:
    """Under Retain."""
    cluster, namespace = lakehouse.cluster, lakehouse.namespace
    lakehouse.apply(vector_index("retained", 2))
    lakehouse.ready("retained")
    with lakehouse.client() as client:
        client.add("retained", ["a"], [[1.0, 0.0]])
        cluster.delete("VectorIndex", namespace, "retained", "--timeout=60s")
        until(
            "its pods to be gone",
            lambda: cluster.all("Pod", namespace, "lakehouse.agentview.dev/index=retained"),
            lambda pods: not pods,
        )
        lakehouse.apply(vector_index("retained", 2))
        lakehouse.ready("retained")
        assert client.count("retained") == 1
    cluster.delete("VectorIndex", namespace, "retained")


def test_a_resource_that_is_deleted_while_it_is_built_goes_at_once(lakehouse: Release) -> None:
    cluster, namespace = lakehouse.cluster, lakehouse.namespace
    rows = "".join(f'{{"id": "r{n}", "v": [{n}.0, 1.0]}}\n' for n in range(2000))
    lakehouse.store.client.put_object(Bucket=lakehouse.bucket, Key="raw/half/a.ndjson", Body=rows.encode())
    lakehouse.apply(dataset("half", f"s3://{lakehouse.bucket}/raw/half/*.ndjson"))
    cluster.wait_for_condition("Dataset", namespace, "half", "Ready", seconds=120)
    source = {"dataset": {"name": "half", "idColumn": "id", "vectorColumn": "v"}}
    lakehouse.apply(vector_index("half", 2, source=source))
    until(
        "the build to begin",
        lambda: cluster.all("Job", namespace, "lakehouse.agentview.dev/index=half"),
        seconds=60,
    )
    cluster.delete("VectorIndex", namespace, "half", "--timeout=60s")
    cluster.delete("Dataset", namespace, "half", "--timeout=60s")
    for kind in ("Job", "Pod", "Deployment"):
        until(
            f"no {kind} of it",
            lambda kind=kind: cluster.all(kind, namespace, "lakehouse.agentview.dev/index=half"),  # type: ignore[misc]
            lambda found: not found,
            seconds=60,
        )
