"""An operator whose own namespace is deleted: its pod is asked to end before anything else there is deleted."""

import asyncio
import logging

import pytest

from kube_api_server import KubeApiServer
from lakehouse import lives
from lakehouse.control.kinds import DATASET, INDEX_SNAPSHOT, VECTOR_INDEX
from lakehouse.core.errors import Unavailable
from lakehouse.runtime import SystemRuntime
from lakehouse.store.s3 import S3Store
from lakehouse_operator import finalizers, leaving, names
from lakehouse_operator.cache import Cache, parsed
from lakehouse_operator.kube import DEPLOYMENT, NAMESPACE, SECRET, Body, Kind, Kube
from lakehouse_operator.leaving import Leaving
from minio_server import MinioServer
from operator_domain.lake import Lake, lake
from operator_frame.running import Place

pytestmark = [pytest.mark.kubernetes, pytest.mark.minio]
ALL = ((INDEX_SNAPSHOT, "kept"), (DATASET, "rows"), (VECTOR_INDEX, "products"))


async def fill(it: Lake, policy: str) -> None:
    """One resource of each kind."""
    where = it.where
    await where.index(deletionPolicy=policy)
    await where.create(DATASET, "rows", {"sources": [{"uri": "s3://raw/rows.csv"}], "deletionPolicy": policy})
    await where.create(INDEX_SNAPSHOT, "kept", {"indexRef": {"name": "products"}, "deletionPolicy": policy})
    for kind, name in ALL:
        await it.told(kind, name, "StorageReachable", "ProbeSucceeded")
    await it.child(DEPLOYMENT, "products-shard-0")


async def left(where: Place) -> list[str]:
    """Kinds whose resource is still there."""
    found = [await where.get(kind, name) for kind, name in ALL]
    return [body["kind"] for body in found if body is not None]


async def is_alive(where: Place, minio: MinioServer) -> bool:
    """Whether the bucket has the index."""
    runtime = SystemRuntime()
    store = S3Store(minio.bucket, where.namespace, runtime, minio.settings())
    try:
        record = await lives.current(store, "products")
    finally:
        await store.close()
        runtime.close()
    assert record is not None
    return record.alive


async def test_what_was_to_be_deleted_with_its_data_is(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async with lake(kube_api, where, minio) as it:
        await fill(it, "Delete")
        await where.kube.delete(NAMESPACE, None, where.namespace)
    assert await left(where) == []
    assert not await is_alive(where, minio)


async def test_its_secret_may_go_first(kube_api: KubeApiServer, where: Place, minio: MinioServer) -> None:
    async with lake(kube_api, where, minio) as it:
        await fill(it, "Delete")
        await where.kube.delete(SECRET, where.namespace, "lake-s3")
        await where.kube.delete(NAMESPACE, None, where.namespace)
    assert await left(where) == []


async def test_a_store_that_went_first_holds_nothing_back(
    kube_api: KubeApiServer,
    where: Place,
    own_minio: MinioServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(leaving, "CLEAN_UP_S", 2.0)
    with caplog.at_level(logging.WARNING):
        async with lake(kube_api, where, own_minio) as it:
            await fill(it, "Delete")
            own_minio.kill()
            await where.kube.delete(NAMESPACE, None, where.namespace)
    assert await left(where) == []
    assert f"left where it is: no time to remove it. resource=VectorIndex/{where.namespace}/" in caplog.text
    own_minio.restart()
    assert await is_alive(where, own_minio)


async def test_what_nobody_has_cleaned_up_is_let_go_whatever_a_turn_or_a_watch_does_meanwhile(
    where: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose finalizer a turn sets while we leave, and one of which the watch brings no more news."""
    monkeypatch.setattr(leaving, "CLEAN_UP_S", 1.0)
    spec = {"dimension": 3, "deletionPolicy": "Delete"}
    watched = await where.create(VECTOR_INDEX, "watched", spec, finalizers=[names.FINALIZER])
    late = await where.create(VECTOR_INDEX, "late", spec)
    await where.kube.delete(NAMESPACE, None, where.namespace)
    cache, runtime = Cache(), SystemRuntime()
    cache.put(watched)
    cache.put(late)
    going = asyncio.ensure_future(
        Leaving(where.kube, cache, runtime, where.namespace, lambda _: None).leave()
    )
    await finalizers.ensure(where.kube, cache, parsed(late))
    await going
    runtime.close()
    for name in ("watched", "late"):
        assert await where.get(VECTOR_INDEX, name) is None


@pytest.mark.parametrize("answer", ["absent", "not ending", "away"])
async def test_nothing_is_deleted_unless_the_namespace_was_seen_being_deleted(
    where: Place, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr(leaving, "ASK_S", 1.0)
    spec = {"dimension": 3, "deletionPolicy": "Delete"}
    made = await where.create(VECTOR_INDEX, "products", spec, finalizers=[names.FINALIZER])
    seen: list[Body] = []

    async def get(kind: Kind, namespace: str | None, name: str) -> Body | None:
        assert (kind, namespace, name) == (NAMESPACE, None, where.namespace)
        if answer == "away":
            raise Unavailable("the API server does not answer")
        return None if answer == "absent" else {"metadata": {"name": name}}

    kube, runtime = Kube(where.kube._login), SystemRuntime()
    monkeypatch.setattr(kube, "get", get)
    await Leaving(kube, Cache(), runtime, where.namespace, seen.append).leave()
    await kube.close()
    runtime.close()
    assert seen == []
    assert await where.get(VECTOR_INDEX, "products") == made


async def test_what_is_retained_is_left_to_the_cluster(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async with lake(kube_api, where, minio) as it:
        await fill(it, "Retain")
        await where.kube.delete(NAMESPACE, None, where.namespace)
    assert await left(where) == [kind for kind, _ in ALL]
    assert await is_alive(where, minio)


async def test_an_operator_that_ends_otherwise_deletes_nothing(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async with lake(kube_api, where, minio) as it:
        await fill(it, "Delete")
    for kind, name in ALL:
        body = await where.get(kind, name)
        assert body is not None
        assert body["metadata"]["finalizers"] == [names.FINALIZER]
        assert "deletionTimestamp" not in body["metadata"]
