"""What a status says when something is wrong."""

import pytest

from e2e.access import Body
from e2e.release import SECRET, Release, dataset, vector_index
from e2e.waiting import until

CONDITIONS = {
    "Accepted",
    "StorageReachable",
    "SourceResolved",
    "Ready",
    "UpToDate",
    "SnapshotCurrent",
    "DrainCurrent",
    "Restored",
}


def test_every_condition_is_set_at_first_sight(lakehouse: Release) -> None:
    lakehouse.apply(vector_index("seen"))
    status = until(
        "a status",
        lambda: lakehouse.cluster.status("VectorIndex", lakehouse.namespace, "seen"),
        lambda found: bool(found.get("conditions")),
        seconds=15,
    )
    conditions = {one["type"]: one for one in status["conditions"]}
    assert set(conditions) >= CONDITIONS
    assert all(one["reason"] and one["observedGeneration"] == 1 for one in conditions.values())
    lakehouse.ready("seen")
    lakehouse.cluster.delete("VectorIndex", lakehouse.namespace, "seen")


STORES: list[tuple[str, Body, str, str, str]] = [
    (
        "no-secret",
        {"credentialsSecretRef": {"name": "nowhere"}},
        "StorageReachable",
        "SecretNotFound",
        "nowhere",
    ),
    (
        "wrong-credentials",
        {"credentialsSecretRef": {"name": "wrong"}},
        "StorageReachable",
        "AccessDenied",
        "",
    ),
    ("no-bucket", {"s3": {"bucket": "nowhere"}}, "StorageReachable", "BucketNotFound", "nowhere"),
    (
        "unreachable",
        {"s3": {"endpoint": "http://10.233.255.254:9000"}},
        "StorageReachable",
        "",
        "10.233.255.254",
    ),
]


@pytest.mark.parametrize("case", STORES, ids=[case[0] for case in STORES])
def test_a_wrong_store_is_named(lakehouse: Release, case: tuple[str, Body, str, str, str]) -> None:
    name, storage, condition, reason, said = case
    cluster, namespace = lakehouse.cluster, lakehouse.namespace
    cluster.apply(lakehouse.store.secret(namespace, "wrong", AWS_SECRET_ACCESS_KEY="nonsense"))
    storage = {"credentialsSecretRef": {"name": SECRET}} | storage
    lakehouse.apply(vector_index(name, storage=storage))
    found = cluster.wait_for_condition(
        "VectorIndex", namespace, name, condition, status="False", reason=reason, seconds=60
    )
    assert said in found["message"]
    ready = cluster.condition("VectorIndex", namespace, name, "Ready")
    assert ready["status"] == "False"
    assert cluster.all("Pod", namespace, f"lakehouse.agentview.dev/index={name}") == []
    cluster.delete("VectorIndex", namespace, name, "--timeout=60s")


def test_a_secret_that_comes_later_is_noticed(lakehouse: Release) -> None:
    cluster, namespace = lakehouse.cluster, lakehouse.namespace
    lakehouse.apply(vector_index("later", storage={"credentialsSecretRef": {"name": "late"}}))
    cluster.wait_for_condition("VectorIndex", namespace, "later", "StorageReachable", status="False")
    cluster.apply(lakehouse.store.secret(namespace, "late"))
    lakehouse.ready("later", seconds=180)
    cluster.delete("VectorIndex", namespace, "later")


def test_a_dataset_that_does_not_exist_or_does_not_fit_is_named(lakehouse: Release) -> None:
    cluster, namespace = lakehouse.cluster, lakehouse.namespace
    source = {"dataset": {"name": "nodata", "idColumn": "id", "vectorColumn": "v"}}
    lakehouse.apply(vector_index("sourceless", 3, source=source))
    found = cluster.wait_for_condition(
        "VectorIndex", namespace, "sourceless", "SourceResolved", status="False"
    )
    assert "nodata" in found["message"]
    lakehouse.store.client.put_object(
        Bucket=lakehouse.bucket, Key="raw/nodata/a.ndjson", Body=b'{"id": "a", "v": [1.0, 2.0]}\n'
    )
    lakehouse.apply(dataset("nodata", f"s3://{lakehouse.bucket}/raw/nodata/*.ndjson"))
    cluster.wait_for_condition("Dataset", namespace, "nodata", "Ready", seconds=120)
    found = cluster.wait_for_condition(
        "VectorIndex", namespace, "sourceless", "SourceResolved", status="False", reason="DimensionMismatch"
    )
    assert "3" in found["message"]
    cluster.delete("VectorIndex", namespace, "sourceless")
    cluster.delete("Dataset", namespace, "nodata")
