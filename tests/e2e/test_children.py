"""What the operator makes of a child that is not its own, was edited, or was deleted."""

from e2e.access import Body, Cluster
from e2e.release import Release, vector_index
from e2e.waiting import until


def test_a_foreign_object_in_the_place_of_a_child_is_left_alone_and_named(lakehouse: Release) -> None:
    cluster, namespace = lakehouse.cluster, lakehouse.namespace
    foreign: Body = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "foreign", "namespace": namespace},
        "spec": {"ports": [{"port": 80}]},
    }
    cluster.apply(foreign)
    lakehouse.apply(vector_index("foreign"))
    found = cluster.wait_for_condition("VectorIndex", namespace, "foreign", "Ready", status="False")
    until(
        "the message to name it",
        lambda: str(cluster.status("VectorIndex", namespace, "foreign").get("conditions")),
        lambda said: "Service" in said and "foreign" in said,
        seconds=60,
    )
    kept = cluster.get("Service", namespace, "foreign")
    assert kept is not None
    assert "ownerReferences" not in kept["metadata"], found
    cluster.delete("Service", namespace, "foreign")
    lakehouse.ready("foreign", seconds=180)
    cluster.delete("VectorIndex", namespace, "foreign")


def test_an_edited_child_and_a_deleted_one_come_back(lakehouse: Release) -> None:
    cluster, namespace = lakehouse.cluster, lakehouse.namespace
    lakehouse.apply(vector_index("mended"))
    lakehouse.ready("mended")
    deployment = "mended-shard-0"
    cluster.patch("Deployment", namespace, deployment, {"spec": {"replicas": 0}})
    until("the edit to be undone", lambda: replicas(cluster, namespace, deployment) == 1, seconds=30)
    for kind, name in (("Deployment", deployment), ("Service", "mended"), ("Service", deployment)):
        before = cluster.get(kind, namespace, name)
        assert before is not None
        cluster.delete(kind, namespace, name)
        until(
            f"{kind} {name} to come back",
            lambda kind=kind, name=name: cluster.get(kind, namespace, name),  # type: ignore[misc]
            lambda body, before=before: (
                body is not None  # type: ignore[misc]
                and body["metadata"]["uid"] != before["metadata"]["uid"]
            ),
            seconds=30,
        )
    lakehouse.ready("mended")
    with lakehouse.client() as client:
        assert client.count("mended") == 0
    cluster.delete("VectorIndex", namespace, "mended")


def replicas(cluster: Cluster, namespace: str, deployment: str) -> int:
    body = cluster.get("Deployment", namespace, deployment)
    return int(body["spec"]["replicas"]) if body else -1
