"""The chart, installed as a user installs it, into a namespace that enforces Pod Security *restricted*.

What this does not know: how the cluster was made.
"""

import base64
import contextlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from e2e.access import Body, Cluster
from e2e.images import ROOT, Image
from e2e.store import ENDPOINT, Store
from lakehouse.client import Client

CHART = ROOT / "charts" / "lakehouse"
PORT = 3110
SECRET = "store-credentials"
BUCKET = "lakehouse"
GROUP = "lakehouse.agentview.dev/v1alpha1"
SMALL: Body = {"requests": {"cpu": "20m", "memory": "128Mi"}}
"""What pods ask for, on a machine whose cores they all share."""


@dataclass(frozen=True)
class Release:
    """One `helm install`; `url` is its gateway as this machine reaches it."""

    cluster: Cluster
    store: Store
    namespace: str
    name: str
    url: str
    keys: dict[str, str]
    values: Body
    bucket: str = BUCKET

    def http(self, right: str = "admin", *, timeout_s: float = 30.0) -> httpx.Client:
        """A plain HTTP client with a key of this right."""
        headers = {"Authorization": f"Bearer {self.keys[right]}"} if right else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s)

    def client(self, right: str = "admin") -> Client:
        """The project's own client."""
        return Client(self.url, api_key=self.keys[right])

    def apply(self, *bodies: Body) -> None:
        self.cluster.apply([*bodies], namespace=self.namespace)

    def upgrade(self, **changes: Any) -> None:
        """`helm upgrade` with changed values, and wait until every pod of the chart is the new one."""
        values = merged(self.values, changes)
        _install(self.cluster, self.namespace, self.name, values)

    def ready(self, name: str, *, seconds: float = 120.0) -> Body:
        """Wait until a VectorIndex is Ready; returns the condition."""
        return self.cluster.wait_for_condition("VectorIndex", self.namespace, name, "Ready", seconds=seconds)

    def operator_pods(self) -> list[Body]:
        return self.pods("operator")

    def pods(self, component: str) -> list[Body]:
        """Pods of a component of the chart that are not on their way out."""
        labels = f"app.kubernetes.io/instance={self.name},app.kubernetes.io/component={component}"
        found = self.cluster.all("Pod", self.namespace, labels)
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def vector_index(name: str, dimension: int = 8, **spec: Any) -> Body:
    """A VectorIndex that takes few resources."""
    body = {"dimension": dimension, "pod": {"resources": SMALL}} | spec
    return {"apiVersion": GROUP, "kind": "VectorIndex", "metadata": {"name": name}, "spec": body}


def dataset(name: str, *uris: str, **spec: Any) -> Body:
    body = {"sources": [{"uri": uri} for uri in uris]} | spec
    return {"apiVersion": GROUP, "kind": "Dataset", "metadata": {"name": name}, "spec": body}


def index_snapshot(name: str, index: str) -> Body:
    spec = {"indexRef": {"name": index}}
    return {"apiVersion": GROUP, "kind": "IndexSnapshot", "metadata": {"name": name}, "spec": spec}


@contextlib.contextmanager
def installed(
    cluster: Cluster,
    store: Store,
    images: dict[str, Image],
    namespace: str,
    *,
    name: str = "lakehouse",
    bucket: str = BUCKET,
    **changes: Any,
) -> Iterator[Release]:
    """Install the chart and lend the release; it stays until its namespace ends."""
    cluster.fresh_namespace(namespace)
    store.make_bucket(bucket)
    cluster.apply(store.secret(namespace, SECRET))
    values = merged(values_of(images, bucket), changes)
    _install(cluster, namespace, name, values)
    secret = cluster.get("Secret", namespace, f"{name}-keys")
    assert secret is not None, "the chart made no keys"
    keys = {right: base64.b64decode(secret["data"][right]).decode() for right in ("admin", "write", "read")}
    with cluster.reach(namespace, f"{name}-gateway", PORT) as address:
        yield Release(cluster, store, namespace, name, f"http://{address}", keys, values, bucket)


def values_of(images: dict[str, Image], bucket: str) -> Body:
    """The values that this machine and these images ask for; everything else is the chart's default."""
    small = {"resources": SMALL}
    return {
        "images": {
            target: {"repository": images[target].repository, "tag": images[target].tag}
            for target in ("dataplane", "operator")
        },
        "storage": {
            "s3": {"endpoint": ENDPOINT, "bucket": bucket},
            "credentialsSecretRef": {"name": SECRET},
        },
        "operator": {"podDefaults": small},
        "gateway": small,
        "pool": small,
        "query": small,
    }


def merged(values: Body, changes: Body) -> Body:
    """`values` with `changes` put over them, object by object."""
    result = dict(values)
    for key, value in changes.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def _install(cluster: Cluster, namespace: str, name: str, values: Body) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "values.json"
        file.write_text(json.dumps(values))
        command = ["upgrade", name, str(CHART), "--install", "--namespace", namespace]
        cluster.helm(*command, "--values", str(file), "--wait", "--timeout", "180s")
