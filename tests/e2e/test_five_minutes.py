"""The steps of "Five minutes on kind" in dataplane/KUBERNETES.md, from `helm install` to the first search.

The chart with its own MinIO, the files put over HTTP, the example as it is; beside the session's release, in which
nothing happens meanwhile and nothing may be written.  What this does not try: `docker build` and kind.
"""

import base64
import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import httpx
import pytest

from e2e import evidence, images, release
from e2e.access import Body, Cluster
from e2e.images import ROOT, Image
from e2e.release import CHART, PORT, Release, vector_index

NAMESPACE = "lakehouse-e2e-five-minutes"
NAME = "lake"
EXAMPLES = ROOT / "examples"
FILES = ("debian-packages.parquet", "sections.csv")
IDLE_S = 60.0
SETTLES_S = 10.0
"""What readiness sets in motion ends."""


@dataclass(frozen=True)
class Idle:
    """An index of the session's release that nobody touches, as it was at a moment (`time.monotonic`)."""

    release: Release
    since: float
    before: dict[str, str]

    def now(self) -> dict[str, str]:
        return versions(self.release, "idle")


@pytest.fixture(scope="module")
def idle(lakehouse: Release) -> Iterator[Idle]:
    lakehouse.apply(vector_index("idle"))
    lakehouse.ready("idle")
    time.sleep(SETTLES_S)
    yield Idle(lakehouse, time.monotonic(), versions(lakehouse, "idle"))
    lakehouse.cluster.delete("VectorIndex", lakehouse.namespace, "idle")


def versions(release: Release, index: str) -> dict[str, str]:
    """resourceVersions of an index and its children, and of the table of routes."""
    cluster, namespace = release.cluster, release.namespace
    bodies: list[Body] = []
    for kind in ("Deployment", "Service", "Pod", "PodDisruptionBudget"):
        bodies += [
            body | {"kind": kind}
            for body in cluster.all(kind, namespace, f"lakehouse.agentview.dev/index={index}")
        ]
    for kind, name in (("VectorIndex", index), ("ConfigMap", f"{release.name}-routes")):
        found = cluster.get(kind, namespace, name)
        assert found is not None
        bodies.append(found | {"kind": kind})
    return {
        f"{body['kind']} {body['metadata']['name']}": body["metadata"]["resourceVersion"] for body in bodies
    }


def test_from_helm_install_to_the_first_search(
    cluster: Cluster, idle: Idle, images_loaded: dict[str, Image]
) -> None:
    with installed(cluster, images_loaded) as http:
        for name in FILES:
            put = http.put(f"/v1/storage/put/{name}", content=(EXAMPLES / name).read_bytes())
            assert put.status_code < 300, put.text
        cluster.apply((EXAMPLES / "packages.yaml").read_text(), namespace=NAMESPACE)
        ready = ("wait", "vix/packages", "--for=condition=Ready", "--timeout=120s")
        cluster.kubectl(*ready, namespace=NAMESPACE)
        search = http.post("/v1/vectors/index/packages/search", json={"id": "postgresql", "k": 3})
        assert search.status_code == 200, search.text
        found = [hit["id"] for hit in search.json()["results"]]
    assert len(found) == 3
    assert all(name.startswith("postgresql") for name in found)


def test_an_idle_object_is_left_alone_for_a_minute(idle: Idle) -> None:
    """Neither the resource nor any of its children gets a new version, and the table of routes does not either."""
    time.sleep(max(0.0, idle.since + IDLE_S - time.monotonic()))
    assert idle.now() == idle.before


@contextlib.contextmanager
def installed(cluster: Cluster, found: Mapping[str, Image]) -> Iterator[httpx.Client]:
    """`helm install lake charts/lakehouse --set minio.enabled=true --wait`; its gateway, with the admin key."""
    cluster.fresh_namespace(NAMESPACE)
    try:
        command = ("install", NAME, str(CHART), "--namespace", NAMESPACE, "--wait", "--timeout", "180s")
        cluster.helm(*command, "--values", "-", text=json.dumps(values_of(found)))
        secret = cluster.get("Secret", NAMESPACE, f"{NAME}-keys")
        assert secret is not None, "the chart made no keys"
        key = base64.b64decode(secret["data"]["admin"]).decode()
        with cluster.reach(NAMESPACE, f"{NAME}-gateway", PORT) as address:
            headers = {"Authorization": f"Bearer {key}"}
            with httpx.Client(base_url=f"http://{address}", headers=headers, timeout=30) as http:
                yield http
    except AssertionError:
        print(f"kept: {evidence.keep(cluster, NAMESPACE, evidence.folder() / 'five-minutes')}")
        raise
    finally:
        cluster.helm("uninstall", NAME, "--namespace", NAMESPACE, "--ignore-not-found")
        cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s")


def values_of(found: Mapping[str, Image]) -> Body:
    """What this machine and these images ask for; the CRDs are the session's release's."""
    values = release.values_of(dict(found), release.BUCKET) | {"crds": {"enabled": False}}
    del values["storage"]
    return values | {"minio": {"enabled": True} | minio_of(found["minio"])}


def minio_of(image: Image) -> Body:
    """The chart's own where nodes pull it; else the one that was built here, whose program lies elsewhere."""
    if image.name == images.MINIO:
        return {}
    named = {"registry": "", "repository": image.repository, "tag": image.tag}
    return {"image": named, "command": ["/minio"]}
