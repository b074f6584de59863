"""MinIO as a pod, in a namespace of its own, with buckets that tests look into from outside.

Its data lies in a directory of one node, so that the pod can be deleted and come back with all of it.  What
this does not know: what is in the buckets.
"""

import contextlib
import json
import secrets
from collections.abc import Iterator

import boto3
import botocore.config

from e2e.access import Body, Cluster
from e2e.images import Image
from e2e.waiting import until

NAMESPACE = "lakehouse-e2e-store"
NAME = "minio"
PORT = 9000
ENDPOINT = f"http://{NAME}.{NAMESPACE}.svc:{PORT}"
"""As pods reach the one of the session."""
DIRECTORY = "/srv/lakehouse-e2e-minio"


class Store:
    """The running MinIO; `client` looks into it."""

    def __init__(self, cluster: Cluster, image: str, node: str, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.node = node
        self.image = image
        self.access_key = "e2e" + secrets.token_hex(6)
        self.secret_key = secrets.token_hex(20)
        self.address = ""

    @property
    def endpoint(self) -> str:
        """As pods reach it."""
        return f"http://{NAME}.{self.namespace}.svc:{PORT}"

    @property
    def client(self) -> "boto3.client":
        """A plain SDK client, from this machine."""
        return boto3.client(
            "s3",
            endpoint_url=f"http://{self.address}",
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=botocore.config.Config(
                s3={"addressing_style": "path"},
                connect_timeout=5,
                read_timeout=20,
                retries={"max_attempts": 1},
            ),
        )

    def make_bucket(self, name: str) -> None:
        client = self.client
        with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=name)

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Every key below a prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def secret(self, namespace: str, name: str, **changes: str) -> Body:
        """The Secret with which pods of a namespace get in; `changes` spoil it."""
        values = {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key} | changes
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace},
            "stringData": values,
        }

    def is_up(self) -> bool:
        try:
            self.client.list_buckets()
        except Exception:  # noqa: BLE001  whatever it is, it is not up
            return False
        return True

    def stop(self) -> None:
        """Take it away, and wait until it is gone: no second one may open the same directory."""
        self.cluster.kubectl("scale", f"deployment/{NAME}", "--replicas=0", namespace=self.namespace)
        until("MinIO to end", lambda: self.cluster.all("Pod", self.namespace), lambda pods: not pods)

    def start(self) -> None:
        """Bring it back, and wait until it answers."""
        self.cluster.kubectl("scale", f"deployment/{NAME}", "--replicas=1", namespace=self.namespace)
        self.cluster.wait_for_rollout(self.namespace, NAME)
        self.wait_until_up()

    def change_key(self) -> None:
        """From now on another key opens it, and the one before does not; MinIO takes a few seconds for that."""
        self.secret_key = secrets.token_hex(20)
        told = f"MINIO_ROOT_PASSWORD={self.secret_key}"
        self.cluster.kubectl("set", "env", f"deployment/{NAME}", told, namespace=self.namespace)
        self.cluster.wait_for_rollout(self.namespace, NAME)
        self.wait_until_up()

    def wait_until_up(self, seconds: float = 90.0) -> None:
        until("MinIO to answer", self.is_up, seconds=seconds)


@contextlib.contextmanager
def running(cluster: Cluster, image: Image, namespace: str = NAMESPACE) -> Iterator[Store]:
    """Deploy it, wait, and lend it; it stays until the cluster or its namespace ends."""
    cluster.fresh_namespace(namespace, restricted=False)
    node = min(item["metadata"]["name"] for item in _nodes(cluster))
    store = Store(cluster, image.name, node, namespace)
    cluster.apply(_manifests(store))
    cluster.wait_for_rollout(namespace, NAME)
    with cluster.reach(namespace, NAME, PORT) as address:
        store.address = address
        store.wait_until_up()
        yield store


def _nodes(cluster: Cluster) -> list[Body]:
    return list(json.loads(cluster.kubectl("get", "nodes", "-o", "json"))["items"])


def _manifests(store: Store) -> list[Body]:
    labels = {"app": "minio"}
    directory = f"{DIRECTORY}/{store.access_key}"
    container = {
        "name": NAME,
        "image": store.image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["server", "--quiet", "--address", f":{PORT}", "/data"],
        "env": [
            {"name": "MINIO_ROOT_USER", "value": store.access_key},
            {"name": "MINIO_ROOT_PASSWORD", "value": store.secret_key},
            {"name": "MINIO_BROWSER", "value": "off"},
            {"name": "MINIO_UPDATE", "value": "off"},
            {"name": "HOME", "value": "/data"},
        ],
        "securityContext": {"runAsUser": 0},
        "readinessProbe": {"httpGet": {"path": "/minio/health/ready", "port": PORT}, "periodSeconds": 1},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    pod = {
        "nodeSelector": {"kubernetes.io/hostname": store.node},
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        "containers": [container],
        "volumes": [
            {
                "name": "data",
                "hostPath": {"path": directory, "type": "DirectoryOrCreate"},
            }
        ],
    }
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": NAME, "namespace": store.namespace},
            "spec": {
                "replicas": 1,
                "strategy": {"type": "Recreate"},
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": NAME, "namespace": store.namespace},
            # The only one: while it runs it is reached, even if its node says nothing.
            "spec": {
                "selector": labels,
                "ports": [{"port": PORT, "targetPort": PORT}],
                "publishNotReadyAddresses": True,
            },
        },
    ]
