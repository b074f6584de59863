"""Boring resources and observations for the tests of `lakehouse.control`; each test changes what it is about."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from lakehouse.control import conditions, dataset, index_snapshot, kinds, plan, state, vector_index
from lakehouse.control.conditions import ConditionType
from lakehouse.control.kinds import DatasetSpec, IndexSnapshotSpec, VectorIndexSpec
from lakehouse.control.state import REACHABLE, Life, Meta, ObservedDataset, ObservedIndex, Resource
from lakehouse.core.types import Distance, IndexParams

NOW = datetime(2026, 5, 4, 12, 0, 30, tzinfo=UTC)
IDENTITY = "home/default/products"
COLUMNS = {"id": "VARCHAR", "embedding": "FLOAT[3]", "price": "DOUBLE"}
SOURCE = {"dataset": {"name": "catalog", "idColumn": "id", "vectorColumn": "embedding", "follow": "Latest"}}
ONCE = {"dataset": {**SOURCE["dataset"], "follow": "Once"}}
DRAIN = {"into": "workers", "maxItems": 500, "maxAge": "5m"}
SNAPSHOTS: dict[str, Any] = {"schedule": "0 */6 * * *"}

S = TypeVar("S")


def ago(**length: float) -> datetime:
    """Before `NOW`."""
    return NOW - timedelta(**length)


def meta(name: str = "products", **changes: Any) -> Meta:
    """Of a resource that is a week old."""
    return replace(Meta(name, "default", "uid-1", 1, ago(days=7)), **changes)


def index(
    status: Mapping[str, Any] | None = None, *, of: Meta | None = None, **spec: Any
) -> Resource[VectorIndexSpec]:
    """A VectorIndex of dimension 3."""
    return Resource("VectorIndex", of or meta(), kinds.vector_index({"dimension": 3, **spec}), status or {})


def life(**changes: Any) -> Life:
    """What lives under its name: ours, empty at first."""
    params = IndexParams("products", 3, distance=Distance.COSINE)
    return replace(Life(params, 1, IDENTITY), **changes)


def seen(**changes: Any) -> ObservedIndex:
    """A served index."""
    usual = ObservedIndex(
        identity=IDENTITY,
        store=REACHABLE,
        life=life(),
        ef_search=64,
        items=0,
        position="p0",
        serving=True,
        replicas=1,
        ready_replicas=1,
    )
    return replace(usual, **changes)


def unborn(**changes: Any) -> ObservedIndex:
    """Nothing lives under the name."""
    return replace(ObservedIndex(IDENTITY, REACHABLE), **changes)


def rows(version: int = 1, **changes: Any) -> state.ObservedSource:
    """A dataset that fits."""
    return replace(state.ObservedSource(version, COLUMNS), **changes)


def built(resource: Resource[VectorIndexSpec], version: int = 1) -> Life:
    """A life that was built from the resource's source."""
    source = resource.spec.source
    assert source is not None
    origin = {
        "dataset": source.dataset,
        "version": version,
        "id_column": source.id_column,
        "vector_column": source.vector_column,
        "metadata_columns": list(source.metadata_columns),
        "build": vector_index.build_key(resource.spec, source),
        **({"follow": "Once"} if source.follow is kinds.Follow.ONCE else {}),
    }
    hnsw = resource.spec.hnsw
    return life(
        origin=origin, params=IndexParams("products", 3, hnsw.m, ef_construction=hnsw.ef_construction)
    )


def decide(resource: Resource[VectorIndexSpec], observed: ObservedIndex, now: datetime = NOW) -> plan.Plan:
    """The index's round."""
    return vector_index.reconcile(resource, observed, now)


def files(
    status: Mapping[str, Any] | None = None, *, of: Meta | None = None, **spec: Any
) -> Resource[DatasetSpec]:
    """A Dataset of one file."""
    body = {"sources": [{"uri": "s3://raw/a.csv"}], **spec}
    return Resource("Dataset", of or meta("catalog"), kinds.dataset(body), status or {})


def version(number: int = 1, **changes: Any) -> state.DatasetVersion:
    """A published version."""
    usual = state.DatasetVersion(
        number, f"_catalog/manifests/catalog/{number:020}.json", "f" * 64, 10, 100, 1, ago(hours=1)
    )
    return replace(usual, **changes)


def refreshed(resource: Resource[DatasetSpec], **changes: Any) -> state.LastRefresh:
    """A refresh that fulfilled the resource's present wish an hour ago."""
    key = dataset.refresh_key(resource.spec, resource.meta)
    usual = state.LastRefresh(key, ago(hours=1), ago(minutes=59), state.RefreshResult.PUBLISHED, 1)
    return replace(usual, **changes)


def ingested(resource: Resource[DatasetSpec], **changes: Any) -> ObservedDataset:
    """A dataset with one version that is what its resource asks for."""
    usual = ObservedDataset(REACHABLE, version(), versions=(1,), last_refresh=refreshed(resource))
    return replace(usual, **changes)


def refresh(resource: Resource[DatasetSpec], observed: ObservedDataset, now: datetime = NOW) -> plan.Plan:
    """The dataset's round."""
    return dataset.reconcile(resource, observed, now)


def isnap(
    status: Mapping[str, Any] | None = None, *, of: Meta | None = None, **spec: Any
) -> Resource[IndexSnapshotSpec]:
    """An IndexSnapshot that was asked for a minute ago."""
    body = {"indexRef": {"name": "products"}, **spec}
    made = of or meta("nightly", created_at=ago(minutes=1))
    return Resource("IndexSnapshot", made, kinds.index_snapshot(body), status or {})


def snap(
    resource: Resource[IndexSnapshotSpec], observed: state.ObservedIndexSnapshot, now: datetime = NOW
) -> plan.Plan:
    """The snapshot's round."""
    return index_snapshot.reconcile(resource, observed, now)


def condition(made: plan.Plan, kind: ConditionType) -> tuple[str, str]:
    """Status and reason of a condition in a plan."""
    found = conditions.find(made.status, kind)
    return found["status"], found["reason"]


def message(made: plan.Plan, kind: ConditionType) -> str:
    """What a condition in a plan says."""
    return str(conditions.find(made.status, kind)["message"])


def failure(action: plan.Action, reason: str = "Unavailable", **changes: Any) -> state.Failure:
    """An action that failed a moment ago."""
    usual = state.Failure(action.act, action.subject, reason, "it broke", ago(seconds=1))
    return replace(usual, **changes)


def running(action: plan.Action) -> state.Running:
    """A long action that was started a minute ago."""
    return state.Running(action.act, action.subject, ago(minutes=1), "10 of 20 items")


def after(resource: Resource[S], made: plan.Plan) -> Resource[S]:
    """The resource once the plan's status was written."""
    return replace(resource, status=made.status)
