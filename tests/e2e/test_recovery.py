"""Disaster recovery: nothing is left but the bucket."""

import numpy as np

from e2e import release
from e2e.access import Body, Cluster
from e2e.images import Image
from e2e.release import Release, dataset, vector_index
from e2e.store import Store

FIRST, SECOND = "lakehouse-e2e-lost", "lakehouse-e2e-found"
ADOPT = {"lakehouse.agentview.dev/adopt": "true"}
DIMENSION = 8
PREFIX = "recovered"
CHANGES: Body = {
    "crds": {"enabled": False},
    "pool": {"replicas": 1},
    "storage": {"s3": {"prefix": PREFIX}},
}


def wanted(bucket: str) -> list[Body]:
    return [
        dataset("prices", f"s3://{bucket}/{PREFIX}/raw/prices.csv"),
        vector_index("written", DIMENSION, shards=2),
    ]


def rows() -> np.ndarray:
    return np.random.default_rng(7).standard_normal((300, DIMENSION)).astype(np.float32)


def test_the_same_yaml_over_the_same_bucket_brings_everything_back(
    cluster: Cluster, lakehouse: Release, minio_pod: Store, images_loaded: dict[str, Image]
) -> None:
    """Another namespace stands for another cluster: other owner, pods and Secrets, the same bucket."""
    with release.installed(cluster, minio_pod, images_loaded, FIRST, name="lost", **CHANGES) as lost:
        key = f"{PREFIX}/raw/prices.csv"
        minio_pod.client.put_object(Bucket=lost.bucket, Key=key, Body=b"id,price\na,1\nb,2\n")
        lost.apply(*wanted(lost.bucket))
        lost.ready("written")
        cluster.wait_for_condition("Dataset", FIRST, "prices", "Ready", seconds=120)
        with lost.client() as client:
            client.add("written", [f"i{n}" for n in range(300)], rows())
            client.create("undeclared", 2)
            client.add("undeclared", ["u"], [[0.0, 1.0]])
    cluster.kubectl("delete", "namespace", FIRST, "--timeout=120s")

    with release.installed(cluster, minio_pod, images_loaded, SECOND, name="found", **CHANGES) as found:
        found.apply(*wanted(found.bucket))
        refused = cluster.wait_for_condition(
            "VectorIndex", SECOND, "written", "Accepted", status="False", reason="PrefixTaken"
        )
        assert FIRST in refused["message"]
        found.apply(
            *(body | {"metadata": body["metadata"] | {"annotations": ADOPT}} for body in wanted(found.bucket))
        )
        found.ready("written")
        cluster.wait_for_condition("Dataset", SECOND, "prices", "Ready", seconds=120)
        with found.client() as client:
            assert client.count("written") == 300
            assert client.search("written", rows()[42], k=1)[0].id == "i42"
            assert client.count("undeclared") == 1
            assert client.sql("SELECT sum(price) FROM prices").rows() == [(3,)]
    cluster.kubectl("delete", "namespace", SECOND, "--wait=false")  # nobody needs it to be gone
