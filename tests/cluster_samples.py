"""Boring resources of a cluster, and objects as its API server would show them; each test changes what it is about."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from lakehouse.control import kinds
from lakehouse.control.kinds import DatasetSpec, IndexSnapshotSpec, VectorIndexSpec
from lakehouse.control.state import Meta, Resource
from lakehouse.core import incarnation
from lakehouse.core.incarnation import Incarnation
from lakehouse.core.types import IndexParams
from lakehouse_operator import names
from lakehouse_operator.pods import IndexState, PodState, ShardState
from lakehouse_operator.settings import Settings
from lakehouse_operator.targets import Target, target

NOW = datetime(2026, 5, 4, 12, 0, 30, tzinfo=UTC)
LIFE = UUID("11111111111111111111111111111111")
BEFORE = UUID("22222222222222222222222222222222")
NAMESPACE = "shop"


def settings(**changes: Any) -> Settings:
    """An operator with MinIO as the default bucket."""
    usual: dict[str, Any] = {
        "namespace": NAMESPACE,
        "image": "registry.example/lakehouse:1.2.3",
        "image_pull_secrets": ("pull",),
        "default_s3_endpoint": "http://minio:9000",
        "default_s3_bucket": "lake",
        "default_s3_region": "us-east-1",
        "default_credentials_secret": "lake-s3",
        "keys": '[{"name":"a","right":"read","sha256":"00"}]',
        "pod_defaults": {"resources": {"requests": {"cpu": "500m", "memory": "512Mi"}}},
    }
    return Settings(**{**usual, **changes})


def meta(name: str = "products", **changes: Any) -> Meta:
    usual: dict[str, Any] = {
        "name": name,
        "namespace": NAMESPACE,
        "uid": f"uid-{name}",
        "generation": 1,
        "created_at": NOW,
    }
    return Meta(**{**usual, **changes})


def index(
    name: str = "products", status: Mapping[str, Any] | None = None, **spec: Any
) -> Resource[VectorIndexSpec]:
    """A VectorIndex of dimension 3."""
    return Resource("VectorIndex", meta(name), kinds.vector_index({"dimension": 3, **spec}), status or {})


def dataset(name: str = "catalog", **spec: Any) -> Resource[DatasetSpec]:
    body = {"sources": [{"uri": "s3://raw/a.csv"}], **spec}
    return Resource("Dataset", meta(name), kinds.dataset(body), {})


def snapshot(
    name: str = "nightly", status: Mapping[str, Any] | None = None, **spec: Any
) -> Resource[IndexSnapshotSpec]:
    body = {"indexRef": {"name": "products"}, **spec}
    return Resource("IndexSnapshot", meta(name), kinds.index_snapshot(body), status or {})


def where(storage: Mapping[str, Any] | None = None, **changes: Any) -> Target:
    return target(NAMESPACE, storage, settings(**changes))


def record(number: int = 0, ends: UUID | None = None, shards: int = 1, **changes: Any) -> Incarnation:
    """The record of a life that the resource `products` began."""
    params = IndexParams("products", 3)
    owner = changes.pop("owner", "home/shop/products")
    return incarnation.begin(number, LIFE, params, shards, owner, ends=ends, **changes)


def pod(
    number: int = 0,
    shard: int = 0,
    *,
    ready: bool = True,
    life: UUID | None = LIFE,
    serving: bool = True,
    items: int = 0,
    position: int = 0,
    damage: str = "",
    detail: str = "",
    ef_search: int = 64,
) -> PodState:
    """A pod that serves; without a `life` it does not answer."""
    said = None
    if life is not None:
        state = ShardState(shard, items, position, damage)
        said = IndexState(life.hex, 0, ef_search, serving, shards=(state,))
    return PodState(f"products-{shard}-{number}", shard, "10.0.0.1", ready, life is not None, said, detail)


def deployment(
    name: str = "products",
    release: str = "new",
    *,
    asked: int = 2,
    updated: int = 2,
    available: int = 2,
    **changes: Any,
) -> dict[str, Any]:
    """A Deployment of an index's only shard, as a cluster shows it."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": f"{name}-shard-0",
            "namespace": NAMESPACE,
            "uid": f"uid-{name}-shard-0",
            "generation": 1,
            "labels": names.labels("index", index=name),
            "annotations": {names.RELEASE_ANNOTATION: release, **changes.pop("annotations", {})},
        },
        "spec": {"replicas": asked},
        "status": {
            "observedGeneration": 1,
            "replicas": max(asked, updated),
            "updatedReplicas": updated,
            "availableReplicas": available,
            **changes,
        },
    }
