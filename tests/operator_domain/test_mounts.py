"""A Secret that changes reaches the pods that have it as files: each is told once, and nobody without need."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cluster_samples import NAMESPACE
from kube_api_server import KubeApiServer
from lakehouse.control.kinds import VECTOR_INDEX
from lakehouse.core.errors import Denied, LakehouseError, NotFound
from lakehouse.log import Backoff
from lakehouse.runtime import SystemRuntime
from lakehouse_operator import mounts as mounts_module
from lakehouse_operator import names
from lakehouse_operator.kube import KINDS, POD, Body
from lakehouse_operator.mounts import Mounts, Seen, is_stale, mounts, seen_again
from minio_server import MinioServer
from operator_domain.lake import SECRET, lake, put_secret, until
from operator_domain.test_buckets import parts
from operator_frame.running import Place

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
TOLD = names.mounted_annotation(SECRET)


def pod(name: str = "p", secret: str = SECRET, *, told: str | None = None, **more: Any) -> Body:
    """A running pod that has a Secret as files, of a minute ago."""
    metadata = {
        "name": name,
        "namespace": NAMESPACE,
        "uid": f"uid-{name}",
        "resourceVersion": "1",
        "creationTimestamp": (NOW - timedelta(minutes=1)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "annotations": {} if told is None else {TOLD: told},
        **more.pop("metadata", {}),
    }
    spec = {"volumes": [{"name": "scratch", "emptyDir": {}}, {"name": "c", "secret": {"secretName": secret}}]}
    status = {"phase": "Running", **more}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status}


# ---- whom to tell ---------------------------------------------------------------------------------------------------


def test_only_a_pod_that_goes_on_and_has_that_secret_as_files_is_meant() -> None:
    assert mounts(pod(), SECRET)
    assert not mounts(pod(secret="another"), SECRET)
    assert not mounts(pod(phase="Succeeded"), SECRET)
    assert not mounts(pod(metadata={"deletionTimestamp": "2026-05-04T12:00:00Z"}), SECRET)
    assert not mounts({**pod(), "spec": {}}, SECRET)


def test_after_a_change_a_pod_of_before_is_told_and_one_of_afterwards_is_not() -> None:
    assert is_stale(pod(), SECRET, Seen("8", NOW))
    assert not is_stale(pod(), SECRET, Seen("8", NOW - timedelta(hours=1)))
    assert not is_stale(pod(told="8"), SECRET, Seen("8", NOW))
    assert is_stale(pod(told="7"), SECRET, Seen("8", NOW))


def test_at_first_sight_only_who_was_told_of_another_version_or_is_in_doubt_is_told() -> None:
    assert not is_stale(pod(), SECRET, Seen("8"))
    assert is_stale(pod(told="7"), SECRET, Seen("8"))
    assert is_stale(pod(), SECRET, Seen("8"), doubting=True)
    assert not is_stale(pod(told="8"), SECRET, Seen("8"), doubting=True)


def test_a_secret_has_changed_when_a_newer_version_is_seen_after_the_first() -> None:
    first = seen_again(None, "7", NOW)
    assert first == Seen("7")
    assert seen_again(first, "7", NOW) is first
    assert seen_again(first, "6", NOW) is first  # by a look that began earlier
    assert seen_again(first, "10", NOW) == Seen("10", NOW)


def test_a_secret_of_any_name_has_an_annotation_of_its_own() -> None:
    long = ["a" * 200 + end for end in ("x", "y")]
    found = {names.mounted_annotation(one) for one in (*long, SECRET, f"{SECRET}.more")}
    assert len(found) == 4
    assert all(len(one.split("/")[1]) <= 63 for one in found)


# ---- telling --------------------------------------------------------------------------------------------------------


class Api:
    """An API server that notes what is patched, and fails as often as it is asked to."""

    def __init__(self) -> None:
        self.patched: list[tuple[str, str]] = []
        self.version = "8"
        self.read = 0
        self.errors: list[LakehouseError] = []

    async def get(self, kind: str, namespace: str, name: str) -> Body:
        self.read += 1
        return {"metadata": {"name": name, "namespace": namespace, "resourceVersion": self.version}}

    async def patch_metadata(self, kind: str, namespace: str, name: str, patch: dict[str, Any]) -> Body:
        if self.errors:
            raise self.errors.pop()
        assert patch["uid"] == f"uid-{name}"
        ((annotation, version),) = patch["annotations"].items()
        assert annotation == TOLD
        self.patched.append((name, version))
        newer = {"resourceVersion": str(len(self.patched) + 1), "annotations": {TOLD: version}}
        return pod(name, metadata=newer)


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
async def telling(runtime: SystemRuntime, api: Api, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mounts]:
    """For three pods, of which two have the Secret as files."""
    monkeypatch.setattr(mounts_module, "PACE_S", 0.01)
    given = parts(runtime)
    monkeypatch.setattr(given.kube, "get", api.get)
    monkeypatch.setattr(given.kube, "patch_metadata", api.patch_metadata, raising=False)
    for one in (pod("a"), pod("b"), pod("c", "another")):
        given.cache.put(one)
    found = Mounts(given)
    found.start()
    yield found
    await found.close()


async def test_a_change_is_told_once_per_pod(telling: Mounts, api: Api) -> None:
    for version in ("7", "7", "8", "8", "8"):
        telling.seen(NAMESPACE, SECRET, version)
    await until(lambda: len(api.patched) >= 2)
    for version in ("8", "7", "8", "9"):
        telling.seen(NAMESPACE, SECRET, version)
    await until(lambda: len(api.patched) >= 4)
    assert sorted(api.patched) == [("a", "8"), ("a", "9"), ("b", "8"), ("b", "9")]
    assert api.read == 0


async def test_what_fails_is_tried_again_and_who_has_gone_is_not(
    telling: Mounts, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts_module, "RETRY", Backoff(first_s=0.01, most_s=0.01))
    api.errors = [NotFound("it has gone"), Denied("you may not", authenticated=True)]
    telling.seen(NAMESPACE, SECRET, "7")
    telling.seen(NAMESPACE, SECRET, "8")
    await until(lambda: api.patched)
    telling.seen(NAMESPACE, SECRET, "9")
    await until(lambda: {("a", "9"), ("b", "9")} <= set(api.patched))
    assert api.errors == []


async def test_pods_that_may_not_be_told_hold_no_others_back(
    telling: Mounts, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts_module, "RETRY", Backoff(first_s=3_600.0, most_s=3_600.0))
    api.errors = [Denied("you may not", authenticated=True)]
    for secret in ("another", SECRET):
        telling.seen(NAMESPACE, secret, "7")
        telling.seen(NAMESPACE, secret, "8")
    await until(lambda: len(api.patched) >= 2)
    assert sorted(api.patched) == [("a", "8"), ("b", "8")]


async def test_who_is_in_doubt_is_told_of_the_version_that_the_secret_has_now(
    telling: Mounts, api: Api
) -> None:
    for name in ("a", "a", "c", "gone"):
        telling.doubt(NAMESPACE, SECRET, name)
    await until(lambda: api.patched)
    telling.doubt(NAMESPACE, SECRET, "a")
    telling.doubt(NAMESPACE, SECRET, "b")
    await until(lambda: len(api.patched) >= 2)
    assert api.patched == [("a", "8"), ("b", "8")]
    assert api.read == 1  # and not for each that asks


# ---- over a real API server -----------------------------------------------------------------------------------------


@pytest.mark.kubernetes
@pytest.mark.minio
async def test_pods_of_an_index_are_told_of_a_rotation_and_left_alone_otherwise(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async def annotation(name: str) -> str | None:
        body = await where.get(POD, name)
        assert body is not None
        return (body["metadata"].get("annotations") or {}).get(TOLD)

    async def secret_version() -> str:
        body = await where.get("Secret", SECRET)
        assert body is not None
        return str(body["metadata"]["resourceVersion"])

    async with lake(kube_api, where, minio) as it:
        await where.index()
        deployment = await it.child("Deployment", names.shard("products", 0))
        await _run_pod(where, deployment, "first")
        await it.told(VECTOR_INDEX, "products", "StorageReachable", "ProbeSucceeded")
        await it.still()
        assert await annotation("first") is None
        await put_secret(where, minio.access_key, minio.secret_key, SESSION="1")
        rotated = await secret_version()

        async def told() -> bool:
            return await annotation("first") == rotated

        await until(told)
        await _run_pod(where, deployment, "second")
        before = await where.get(POD, "first")
        place = it.domains[0].buckets.target(where.namespace, None)
        looks = it.domains[0].buckets._buckets[place].looked_s

        async def looked_again() -> bool:
            return it.domains[0].buckets._buckets[place].looked_s > looks

        await until(looked_again)
        await it.still()
        assert (await where.get(POD, "first"), await annotation("second")) == (before, None)
    await put_secret(where, minio.access_key, minio.secret_key, SESSION="2")  # while nobody looks
    rotated = await secret_version()
    async with lake(kube_api, where, minio, secret=False):
        await until(told)
        assert await annotation("second") is None


async def _run_pod(where: Place, deployment: Body, name: str) -> None:
    """As the cluster makes it of a Deployment's template."""
    template = deployment["spec"]["template"]
    metadata = {"name": name, "namespace": where.namespace, "labels": template["metadata"]["labels"]}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    await where.kube.create(body)
    path = KINDS[POD].path(where.namespace, name, "status")
    running = {"status": {"phase": "Running"}}
    await where.kube._ask("PATCH", path, running, content="application/merge-patch+json")
