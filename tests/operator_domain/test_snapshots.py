"""IndexSnapshots in a cluster: whose a record is, what holds one back, and what is left when one goes."""

import asyncio
import json
import uuid
from typing import Any

import pytest

from kube_api_server import KubeApiServer
from lakehouse import named_snapshots
from lakehouse.control import packaged
from lakehouse.control.kinds import API_VERSION, INDEX_SNAPSHOT, VECTOR_INDEX
from lakehouse.control.state import ADOPT_ANNOTATION, Act
from lakehouse.core import names as keys
from lakehouse.core.types import Position
from lakehouse_operator import names, snapshots
from lakehouse_operator.cache import Cache
from lakehouse_operator.kube import JOB, KINDS, Body
from lakehouse_operator.pods import Pods
from minio_server import MinioServer
from operator_domain.lake import Lake, lake, until
from operator_domain.little_kubelet import pods
from operator_domain.test_cluster import finalizers
from operator_frame.running import Place, condition, place

SPEC = {"indexRef": {"name": "products"}}
LONG_AGO = "2026-01-02T03:04:05+00:00"
URI = "s3://lake/default/_vectors/products/x/named/before/0/0000.lhv1"


@pytest.mark.kubernetes
async def test_one_of_as_many_shards_as_may_be_can_be_told_of(kube_api: KubeApiServer) -> None:
    spec = packaged.definitions()["VectorIndex"].schema["properties"]["spec"]
    shards = spec["properties"]["shards"]["maximum"]
    digest = ".".join(["f" * 64] * shards)
    position = str(Position(uuid.UUID(int=2**128 - 1), (2**63 - 1,) * shards))
    taken = {"digest": digest, "position": position}
    async with place(kube_api) as where:
        await where.create(INDEX_SNAPSHOT, "before", SPEC)
        await where.index()
        for kind, name, status in (
            (INDEX_SNAPSHOT, "before", taken),
            (VECTOR_INDEX, "products", {"snapshot": {"lastSuccessful": taken}, "position": position}),
        ):
            made = await where.get(kind, name)
            assert made is not None
            version = made["metadata"]["resourceVersion"]
            written = await where.kube.apply_status(KINDS[kind], where.namespace, name, status, version)
            assert written["status"] == status


# ---- who needs one --------------------------------------------------------------------------------------------------


def body(kind: str, name: str, spec: Body, status: Body | None = None, **metadata: Any) -> Body:
    meta = {
        "name": name,
        "namespace": "default",
        "uid": f"uid-{name}",
        "resourceVersion": "1",
        "creationTimestamp": "2026-05-04T12:00:00Z",
        **metadata,
    }
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": meta, "spec": spec, "status": status or {}}


def in_use(*bodies: Body) -> bool:
    """Whether `before`, which is whole, is needed where there is all that."""
    cache = Cache()
    for one in (body(INDEX_SNAPSHOT, "before", SPEC, {"uri": URI, "position": f"{'a' * 32}:1"}), *bodies):
        cache.put(one)
    [seen] = snapshots.of_index(cache, "default", "products")
    return seen.in_use


@pytest.mark.parametrize("asked", [{"name": "before"}, {"uri": URI}])
def test_one_that_an_index_is_restored_from_or_still_to_be_is_in_use(asked: Body) -> None:
    spec = {"dimension": 3, "bootstrap": {"snapshot": asked}}
    restored = {"conditions": [{"type": "Restored", "status": "True", "reason": "Verified"}]}
    assert not in_use()
    assert in_use(body(VECTOR_INDEX, "b", spec))  # between two attempts nothing runs
    assert not in_use(body(VECTOR_INDEX, "b", spec, restored))
    assert not in_use(body(VECTOR_INDEX, "b", {**spec, "suspend": True}))
    assert not in_use(body(VECTOR_INDEX, "b", spec, deletionTimestamp="2026-05-04T12:00:01Z"))
    assert not in_use(body(VECTOR_INDEX, "b", {"dimension": 3, "bootstrap": {"snapshot": {"name": "other"}}}))
    told = {names.ACT_ANNOTATION: Act.RESTORE.value, names.SUBJECT_ANNOTATION: next(iter(asked.values()))}
    assert in_use(body(JOB, "job", {}, annotations=told))
    ended = {"conditions": [{"type": "Failed", "status": "True"}]}
    assert not in_use(body(JOB, "job", {}, ended, annotations=told))


# ---- in a cluster ---------------------------------------------------------------------------------------------------


async def whole(it: Lake) -> list[str]:
    """The named snapshots of the index that are whole in the bucket."""
    return [one.name for one in await named_snapshots.kept(it.store, "products")]


async def left(it: Lake) -> list[str]:
    """Everything of named snapshots in the bucket."""
    return [info.key for info in await it.store.list(f"{keys.VECTORS}products/") if "/named/" in info.key]


async def delete(it: Lake, kind: str, name: str) -> None:
    await it.where.delete(kind, name)
    await it.still()


async def age(it: Lake, name: str) -> None:
    """Let a snapshot's record tell that it was taken long ago."""
    [found] = await named_snapshots.kept(it.store, "products")
    key = keys.named_snapshot_key("products", found.incarnation, name)
    record = json.loads(await it.store.get(key)) | {"completed_at": LONG_AGO}
    await it.store.put(key, json.dumps(record).encode())


@pytest.mark.kubernetes
@pytest.mark.minio
@pytest.mark.timeout(600)
async def test_one_that_is_made_again_is_not_the_old_one_unless_it_is_adopted(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async with lake(kube_api, where, minio) as it, pods(it):
        await where.index()
        await where.ready()
        await where.create(INDEX_SNAPSHOT, "before-upgrade", SPEC)
        first = await it.told(INDEX_SNAPSHOT, "before-upgrade", "Complete", "Verified")
        await delete(it, INDEX_SNAPSHOT, "before-upgrade")
        await age(it, "before-upgrade")
        await where.create(INDEX_SNAPSHOT, "before-upgrade", {**SPEC, "deletionPolicy": "Delete"})
        refused = await it.told(INDEX_SNAPSHOT, "before-upgrade", "Complete", "NameTaken")
        assert "2026-01-02T03:04:05Z" in condition(refused, "Complete")["message"]
        assert "completedAt" not in refused["status"]
        await delete(it, INDEX_SNAPSHOT, "before-upgrade")
        assert await whole(it) == ["before-upgrade"]
        await where.create(INDEX_SNAPSHOT, "before-upgrade", SPEC, annotations={ADOPT_ANNOTATION: "true"})
        adopted = await it.told(INDEX_SNAPSHOT, "before-upgrade", "Complete", "Verified")
        assert adopted["status"]["completedAt"] == "2026-01-02T03:04:05Z"
        assert adopted["status"]["uri"] == first["status"]["uri"]


@pytest.mark.kubernetes
@pytest.mark.minio
@pytest.mark.timeout(600)
async def test_it_goes_with_its_files_or_without_as_its_policy_says_by_then(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async with lake(kube_api, where, minio) as it, pods(it):
        await where.index()
        await where.ready()
        for name, first, then in (("a", "Retain", "Delete"), ("b", "Delete", "Retain")):
            await where.create(INDEX_SNAPSHOT, name, {**SPEC, "deletionPolicy": first})
            await it.told(INDEX_SNAPSHOT, name, "Complete", "Verified")
            assert bool(finalizers(await where.get(INDEX_SNAPSHOT, name))) is (first == "Delete")
            await where.patch(INDEX_SNAPSHOT, name, {"deletionPolicy": then})

            async def follows(name: str = name, then: str = then) -> bool:
                return bool(finalizers(await where.get(INDEX_SNAPSHOT, name))) is (then == "Delete")

            await until(follows, "the finalizer follows the policy")
        for name in ("a", "b"):
            await delete(it, INDEX_SNAPSHOT, name)
        assert await whole(it) == ["b"]


@pytest.mark.kubernetes
@pytest.mark.minio
@pytest.mark.timeout(600)
async def test_one_stays_complete_when_its_index_is_declared_again_elsewhere_and_restores_it(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async with lake(kube_api, where, minio) as it, pods(it):
        await where.index()
        await where.ready()
        await where.create(INDEX_SNAPSHOT, "before-move", SPEC)
        await it.told(INDEX_SNAPSHOT, "before-move", "Complete", "Verified")
        await delete(it, VECTOR_INDEX, "products")
        moved = {"s3": {"prefix": f"{where.namespace}/moved"}}
        await where.index(storage=moved, bootstrap={"snapshot": {"name": "before-move"}})
        found = await it.told(INDEX_SNAPSHOT, "before-move", "StorageReachable", "StorageUnknown")
        assert "lies elsewhere now" in condition(found, "StorageReachable")["message"]
        assert condition(found, "Complete")["reason"] == "Verified"
        await it.told(VECTOR_INDEX, "products", "Restored", "Verified")


@pytest.mark.kubernetes
@pytest.mark.minio
@pytest.mark.timeout(600)
async def test_what_another_is_taking_is_asked_for_ever_more_seldom(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async with lake(kube_api, where, minio) as it, pods(it):
        await where.index()
        ready = await where.ready()
        life = ready["status"]["position"].partition(":")[0]
        # A damaged record looks to the pod as one that another makes: it answers 409, and there is none to be seen.
        await it.store.put(f"{keys.VECTORS}products/{life}/named/taken.json", b"damaged")
        await where.create(INDEX_SNAPSHOT, "taken", SPEC)
        told = await it.told(INDEX_SNAPSHOT, "taken", "Complete", "Retrying")
        assert "a snapshot of this name exists" in condition(told, "Complete")["message"]
        started = [one for one in await where.events() if one["reason"] == "TakeSnapshotStarted"]
        assert [one["count"] for one in started] == [1]


@pytest.mark.kubernetes
@pytest.mark.minio
@pytest.mark.timeout(600)
async def test_one_that_is_deleted_while_it_is_taken_leaves_nothing(
    kube_api: KubeApiServer, where: Place, minio: MinioServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, asked = Pods.call, asyncio.Event()

    async def slow(
        self: Pods, namespace: str, pod: Any, method: str, path: str, *more: Any, **told: Any
    ) -> Any:
        if "/snapshot" not in path:
            return await call(self, namespace, pod, method, path, *more, **told)
        assert path.endswith("?attended=true")
        life = pod.index.life
        await it.store.put(f"{keys.VECTORS}products/{life}/named/going/00000000/0000.lhv1", b"its file")
        asked.set()
        return await asyncio.Event().wait()

    monkeypatch.setattr(Pods, "call", slow)
    async with lake(kube_api, where, minio) as it, pods(it):
        await where.index()
        await where.ready()
        await where.create(INDEX_SNAPSHOT, "going", {**SPEC, "deletionPolicy": "Delete"})
        await until(asked.is_set)
        assert await left(it) != []
        await delete(it, INDEX_SNAPSHOT, "going")
        assert await left(it) == []
