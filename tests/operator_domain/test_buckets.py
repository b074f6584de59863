"""A place that cannot be used is something seen of whoever lies there: it is told of, and holds nothing back."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import pytest

import cluster_samples
from cluster_samples import NAMESPACE, NOW
from lakehouse.control import rounds
from lakehouse.control.conditions import ConditionType, find
from lakehouse.control.plan import RemoveResource
from lakehouse.control.state import REACHABLE, SECRET_NOT_READABLE, ObservedIndex, Resource, StoreState
from lakehouse.core.errors import Conflict, Corrupt, Invalid, LakehouseError, NotFound
from lakehouse.loop.work import Workshop
from lakehouse.runtime import SystemRuntime
from lakehouse.store.base import ObjectStore
from lakehouse.store.memory import MemoryStore
from lakehouse.store.wrappers import Call, Wrapper
from lakehouse_operator.cache import Cache
from lakehouse_operator.children import Children
from lakehouse_operator.converge import RECONCILE
from lakehouse_operator.looks import Memory
from lakehouse_operator.observe import Observer
from lakehouse_operator.parts import Parts
from lakehouse_operator.pods import Pods
from lakehouse_operator.storage import Buckets
from lakehouse_operator.targets import Target, target
from operator_domain.backend import no_store

T = TypeVar("T")


class NoSecrets:
    """An API server that does not take the name for a Secret's."""

    async def get(self, kind: str, namespace: str, name: str) -> None:
        raise NotFound(f"the API server does not serve that. GET=`{name}`")


def parts(runtime: SystemRuntime, **changes: Any) -> Parts:
    kube: Any = NoSecrets()
    settings = cluster_samples.settings(**{"default_credentials_secret": "", **changes})
    return Parts(settings, runtime, kube, Cache(), Workshop(runtime, lambda _: None), "home", lambda _: None)


async def seen(runtime: SystemRuntime, storage: Mapping[str, Any]) -> StoreState:
    buckets = Buckets(parts(runtime))
    store, state = await buckets.of(NAMESPACE, storage)
    assert store is None
    await buckets.close()
    return state


# ---- looking at a place ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("s3", "told"),
    [
        ({"region": "eu_central"}, "eu_central"),
        ({"endpoint": "http://my_minio:9000"}, "http://my_minio:9000"),
    ],
)
async def test_a_place_that_no_client_can_open_is_told_of_with_what_is_wrong(
    runtime: SystemRuntime, s3: dict[str, str], told: str
) -> None:
    state = await seen(runtime, {"s3": s3})
    assert (state.reachable, state.reason) == (False, "NotUsable")
    assert told in state.detail
    assert "check endpoint, region" in state.detail
    assert not state.gone


async def test_an_endpoint_behind_which_there_is_no_store_is_told_of_and_is_not_a_bucket_that_is_gone(
    runtime: SystemRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with no_store() as endpoint:
        state = await seen(runtime, {"s3": {"endpoint": endpoint}})
    assert (state.reachable, state.gone) == (False, False)
    assert "check the endpoint" in state.detail
    assert endpoint in state.detail


@pytest.mark.parametrize("status", [400, 403, 404])
async def test_what_is_told_of_a_place_is_the_same_at_every_look(
    runtime: SystemRuntime, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """Or a resource would change whenever it is looked at."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with no_store(status) as endpoint:
        first, again = [await seen(runtime, {"s3": {"endpoint": endpoint}}) for _ in range(2)]
    assert first == again
    assert not first.reachable


async def test_a_name_that_no_secret_can_have_is_told_of(runtime: SystemRuntime) -> None:
    state = await seen(runtime, {"credentialsSecretRef": {"name": "team/credentials"}})
    assert (state.reachable, state.reason) == (False, SECRET_NOT_READABLE)
    assert "team/credentials" in state.detail


# ---- what is observed there -----------------------------------------------------------------------------------------


class Failing(Wrapper):
    """Was there when it was looked at, and answers everything in one way now."""

    def __init__(self, error: LakehouseError) -> None:
        super().__init__(MemoryStore(), SystemRuntime())
        self.error = error

    async def _around(self, operation: str, key: str, call: Call[T]) -> T:
        raise self.error


@dataclass
class Reached:
    """Every place is one store, which counts as reachable until something failed there."""

    store: ObjectStore
    parts: Parts
    suspected: int = 0

    async def of(self, *where: Any, last: bool = False) -> tuple[ObjectStore, StoreState]:
        return self.store, REACHABLE

    def target(self, namespace: str, storage: Mapping[str, Any] | None) -> Target:
        return target(namespace, storage, self.parts.settings)

    def suspect(self, namespace: str, storage: Mapping[str, Any] | None) -> None:
        self.suspected += 1


@pytest.fixture
async def looked(runtime: SystemRuntime) -> AsyncIterator[Any]:
    """Has a resource looked at, whose bucket is that store."""
    opened: list[Pods] = []

    async def look(resource: Resource[Any], buckets: Reached) -> Any:
        unused: Any = None
        given: Any = buckets
        opened.append(Pods(buckets.parts, unused))
        children = Children(unused, buckets.parts.cache)
        observer = Observer(buckets.parts, given, opened[-1], children, Memory())
        return await observer.observe((resource.kind, NAMESPACE, resource.meta.name), resource)

    yield look
    for pods in opened:
        await pods.close()


def to_go(resource: Resource[Any]) -> Resource[Any]:
    return replace(resource, meta=replace(resource.meta, deletion_requested_at=NOW))


@pytest.mark.parametrize("error", [Invalid("refused"), Conflict("other")], ids=repr)
@pytest.mark.parametrize("kind", ["index", "dataset", "snapshot"])
async def test_a_store_that_refuses_to_list_is_told_of_and_holds_nobody_back(
    runtime: SystemRuntime, looked: Any, kind: str, error: LakehouseError
) -> None:
    buckets = Reached(Failing(error), parts(runtime))
    resource = getattr(cluster_samples, kind)(deletionPolicy="Delete")
    observed = await looked(resource, buckets)
    assert observed.store == StoreState(False, "NotUsable", error.message)
    assert buckets.suspected == 1
    status = RECONCILE[resource.kind](resource, observed, NOW).status
    assert status["observedGeneration"] == 1
    assert find(status, ConditionType.STORAGE_REACHABLE)["message"] == error.message
    going = to_go(resource)
    observed = await looked(going, buckets)
    late = NOW + rounds.DELETION_DEADLINE
    assert RECONCILE[going.kind](going, observed, late - timedelta(seconds=1)).actions == ()
    assert RECONCILE[going.kind](going, observed, late).actions == (RemoveResource(),)


async def test_a_damaged_record_is_still_damage_and_no_trouble_of_the_store(
    runtime: SystemRuntime, looked: Any
) -> None:
    buckets = Reached(Failing(Corrupt("torn")), parts(runtime))
    observed: ObservedIndex = await looked(cluster_samples.index(), buckets)
    assert (observed.store, observed.damaged) == (REACHABLE, "torn")


def built_from(name: str, **spec: Any) -> Resource[Any]:
    source = {"name": name, "idColumn": "id", "vectorColumn": "embedding", "follow": "Latest"}
    return cluster_samples.index(source={"dataset": source}, **spec)


@pytest.mark.parametrize("name", ["products.json", "é" * 101], ids=["suffix", "bytes"])
async def test_a_source_that_can_be_no_dataset_is_told_of(
    runtime: SystemRuntime, looked: Any, name: str
) -> None:
    observed: ObservedIndex = await looked(built_from(name), Reached(MemoryStore(), parts(runtime)))
    assert (observed.store, observed.source) == (REACHABLE, None)
    assert name in observed.source_detail


async def test_a_source_whose_dataset_lies_nowhere_is_told_of(runtime: SystemRuntime, looked: Any) -> None:
    given = parts(runtime, default_s3_bucket="")
    metadata = {
        "name": "catalog",
        "namespace": NAMESPACE,
        "uid": "1",
        "resourceVersion": "1",
        "creationTimestamp": NOW.isoformat(),
    }
    given.cache.put({"kind": "Dataset", "metadata": metadata, "spec": {"sources": [{"uri": "s3://raw/a"}]}})
    resource = built_from("catalog", storage={"s3": {"bucket": "own-bucket"}})
    observed: ObservedIndex = await looked(resource, Reached(MemoryStore(), given))
    assert (observed.store, observed.source) == (REACHABLE, None)
    for part in ("where the Dataset lies is not known", "spec.storage.s3.bucket", "dataset=`catalog`"):
        assert part in observed.source_detail
