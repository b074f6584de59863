"""What the operator makes of declared things in a real API server and a real bucket: objects, lives, Jobs, endings."""

import asyncio
import contextlib
import json
from typing import Any

import pytest

from cluster_samples import where as default_target
from kube_api_server import KubeApiServer
from lakehouse import lives
from lakehouse.control.kinds import DATASET, VECTOR_INDEX
from lakehouse.control.state import PAUSE_ANNOTATION
from lakehouse.core.types import IndexParams
from lakehouse.runtime import SystemRuntime
from lakehouse_operator import converge, names, peers
from lakehouse_operator.kube import CONFIG_MAP, DEPLOYMENT, KINDS, PDB, SECRET, SERVICE, Body, Kind, Kube
from minio_server import MinioServer
from operator_domain import test_resources
from operator_domain.lake import Lake, lake, put_secret, until
from operator_frame.running import Place, condition

pytestmark = [pytest.mark.kubernetes, pytest.mark.minio]
RAW = {"sources": [{"uri": "s3://raw/rows.csv"}]}


def finalizers(body: Body | None) -> list[str]:
    return list((body or {})["metadata"].get("finalizers") or ())


# ---- bodies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", test_resources.CASES)
async def test_every_body_is_taken_and_its_pods_are_restricted(
    kube_api: KubeApiServer, where: Place, case: str
) -> None:
    label = {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}
    await where.kube.patch_metadata(KINDS["Namespace"], None, where.namespace, label)
    for body in test_resources.CASES[case]():
        made = {**body, "metadata": {**body["metadata"], "namespace": where.namespace}}
        for one in (made, *pod_of(made)):
            text = json.dumps(one)
            dry = ("--dry-run=server", "--validate=strict", "-f", "-")
            assert "dry run" in kube_api.kubectl("create", *dry, document=text)


def pod_of(body: Body) -> list[Body]:
    if "template" not in body.get("spec", {}):
        return []
    template = body["spec"]["template"]
    meta = {**template["metadata"], "name": "one", "namespace": body["metadata"]["namespace"]}
    return [{"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}]


# ---- an index -------------------------------------------------------------------------------------------------------


async def test_an_empty_index_begins_a_life_and_gets_its_objects_and_then_all_is_still(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async with lake(kube_api, where, minio) as it:
        await where.index(replicas=2, shards=2)
        await it.told(VECTOR_INDEX, "products", "Ready", "Starting")
        for shard in (0, 1):
            for kind in (DEPLOYMENT, SERVICE, PDB):
                await it.child(kind, f"products-shard-{shard}")
        await it.child(SERVICE, "products")
        record = await lives.current(it.store, "products")
        assert record is not None
        assert (record.owner, record.shards) == (f"test/{where.namespace}/products", 2)
        key = where.key(VECTOR_INDEX, "products")
        before = await at_rest(it)
        for _ in range(3):
            await it.turn(key)
        assert await everything(where) == before


async def at_rest(it: Lake) -> dict[str, str]:
    """Everything, once a turn changes nothing of it any more."""

    async def check() -> dict[str, str]:
        before = await everything(it.where)
        await it.turn(it.where.key(VECTOR_INDEX, "products"))
        return before if await everything(it.where) == before else {}

    found: dict[str, str] = await until(check)
    return found


async def everything(where: Place) -> dict[str, str]:
    """The resourceVersion of each object there is."""
    found = {}
    for kind in (VECTOR_INDEX, DEPLOYMENT, SERVICE, PDB, CONFIG_MAP, SECRET):
        for body in await where.kube.list(KINDS[kind], where.namespace):
            found[f"{kind}/{body['metadata']['name']}"] = body["metadata"]["resourceVersion"]
    return found


async def test_a_restart_of_the_operator_writes_nothing(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async with lake(kube_api, where, minio) as it:
        await where.index(replicas=2)
        await it.told(VECTOR_INDEX, "products", "Ready", "Starting")
        await it.child(DEPLOYMENT, "products-shard-0")
        before = await at_rest(it)
    async with lake(kube_api, where, minio) as it:
        await it.turn(where.key(VECTOR_INDEX, "products"))
        assert await everything(where) == before


async def test_what_was_edited_or_deleted_is_put_back(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async with lake(kube_api, where, minio) as it:
        await where.index(replicas=2)
        await it.child(DEPLOYMENT, "products-shard-0")
        await it.still()
        await where.patch(DEPLOYMENT, "products-shard-0", {"replicas": 7})
        await where.kube.delete(SERVICE, where.namespace, "products")
        await where.kube.delete(PDB, where.namespace, "products-shard-0")
        service = await it.child(SERVICE, "products-shard-0")
        await where.patch(SERVICE, "products-shard-0", {"selector": {"tier": "web"}})

        async def back() -> bool:
            deployment = await where.get(DEPLOYMENT, "products-shard-0")
            others = await where.get(SERVICE, "products"), await where.get(PDB, "products-shard-0")
            chooses = (await it.child(SERVICE, "products-shard-0"))["spec"]["selector"]
            assert deployment is not None
            return (
                deployment["spec"]["replicas"] == 2 and all(others) and chooses == service["spec"]["selector"]
            )

        await until(back)


async def test_fewer_replicas_take_the_budget_away(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async with lake(kube_api, where, minio) as it:
        await where.index(replicas=2)
        await it.child(PDB, "products-shard-0")
        await where.patch(VECTOR_INDEX, "products", {"replicas": 1})
        await where.gone(PDB, "products-shard-0")
        deployment = await it.child(DEPLOYMENT, "products-shard-0")
        assert deployment["spec"]["replicas"] == 1


async def test_an_object_of_another_is_never_touched(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    foreign: Body = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "products", "namespace": where.namespace, "labels": {"app": "shop"}},
        "spec": {"ports": [{"port": 80}], "selector": {"app": "shop"}},
    }
    made = await where.kube.create(foreign)
    async with lake(kube_api, where, minio) as it:
        await where.index()
        body = await it.told(VECTOR_INDEX, "products", "Accepted", "ChildNameTaken")
        assert f"service=`{where.namespace}/products`" in condition(body, "Accepted")["message"]
        assert await where.get(SERVICE, "products") == made
        assert await where.get(DEPLOYMENT, "products-shard-0") is None
        await where.kube.delete(SERVICE, where.namespace, "products")
        await it.turn(where.key(VECTOR_INDEX, "products"))
        await it.told(VECTOR_INDEX, "products", "Accepted", "Valid")
        await it.child(DEPLOYMENT, "products-shard-0")


async def test_nothing_is_made_for_an_index_that_is_another_in_the_bucket(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async with lake(kube_api, where, minio) as it:
        await where.index()
        await it.child(DEPLOYMENT, "products-shard-0")
        await where.delete(VECTOR_INDEX, "products")
        for kind, name in ((DEPLOYMENT, "products-shard-0"), (SERVICE, "products")):  # nobody collects here
            await where.kube.delete(kind, where.namespace, name)
        await where.index(dimension=4)
        await it.told(VECTOR_INDEX, "products", "Accepted", "ParamsMismatch")
        await it.turn(where.key(VECTOR_INDEX, "products"))
        assert await where.get(DEPLOYMENT, "products-shard-0") is None
        assert await where.get(SERVICE, "products") is None


async def test_a_paused_index_is_told_of_and_nothing_is_made_for_it(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async with lake(kube_api, where, minio) as it:
        await where.index(annotations={PAUSE_ANNOTATION: "true"}, deletionPolicy="Delete")
        body = await it.told(VECTOR_INDEX, "products", "ReconciliationPaused", "Paused")
        await it.still()
        assert finalizers(body) == []
        assert await lives.current(it.store, "products") is None
        await where.annotate(VECTOR_INDEX, "products", {PAUSE_ANNOTATION: None})
        await it.child(DEPLOYMENT, "products-shard-0")


async def test_a_suspended_index_has_no_pods_until_it_is_resumed(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async with lake(kube_api, where, minio) as it:
        await where.index()
        await it.child(DEPLOYMENT, "products-shard-0")
        for suspend, replicas, reason in ((True, 0, "Suspended"), (False, 1, "Starting")):
            await where.patch(VECTOR_INDEX, "products", {"suspend": suspend})
            await it.told(VECTOR_INDEX, "products", "Ready", reason)

            async def scaled(replicas: int = replicas) -> bool:
                body = await where.get(DEPLOYMENT, "products-shard-0")
                return body is not None and body["spec"]["replicas"] == replicas

            await until(scaled)


async def test_an_index_whose_pods_the_cluster_refuses_is_suspended_all_the_same(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    refused = {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}
    async with lake(kube_api, where, minio) as it:
        await where.index()
        before = await it.child(DEPLOYMENT, "products-shard-0")
        await where.patch(VECTOR_INDEX, "products", {"pod": {"resources": refused}})
        await it.told(VECTOR_INDEX, "products", "UpToDate", "ApplyFailed")
        await where.patch(VECTOR_INDEX, "products", {"suspend": True})
        body = await it.told(VECTOR_INDEX, "products", "Ready", "Suspended")
        asleep = await it.child(DEPLOYMENT, "products-shard-0")
        assert asleep["spec"]["replicas"] == 0
        assert asleep["spec"]["template"] == before["spec"]["template"]
        assert condition(body, "UpToDate")["reason"] == "ApplyFailed"
        await where.patch(VECTOR_INDEX, "products", {"suspend": False, "pod": None})

        async def back() -> bool:
            found = await where.get(DEPLOYMENT, "products-shard-0")
            return found is not None and found["spec"]["replicas"] == 1

        await until(back)
        await it.told(VECTOR_INDEX, "products", "UpToDate", "RollingOut")


async def test_an_index_is_suspended_while_its_bucket_is_away(
    kube_api: KubeApiServer, where: Place, own_minio: MinioServer
) -> None:
    async with lake(kube_api, where, own_minio) as it:
        await where.index(shards=2)
        for shard in (0, 1):
            await it.child(DEPLOYMENT, f"products-shard-{shard}")
        await it.still()
        own_minio.kill()
        await it.told(VECTOR_INDEX, "products", "StorageReachable", "Timeout")
        await where.patch(VECTOR_INDEX, "products", {"suspend": True})
        await it.told(VECTOR_INDEX, "products", "Ready", "Suspended")
        for shard in (0, 1):
            body = await it.child(DEPLOYMENT, f"products-shard-{shard}")
            assert body["spec"]["replicas"] == 0


async def test_an_index_whose_spec_is_refused_is_suspended_all_the_same(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async with lake(kube_api, where, minio) as it:
        await where.index()
        await it.child(DEPLOYMENT, "products-shard-0")
        wrong = {"schedule": "0 0 * * *", "timeZone": "Mars/X"}
        await where.patch(VECTOR_INDEX, "products", {"snapshots": wrong})
        await it.told(VECTOR_INDEX, "products", "Accepted", "InvalidSpec")
        await where.patch(VECTOR_INDEX, "products", {"suspend": True})
        await it.told(VECTOR_INDEX, "products", "Ready", "Suspended")
        body = await it.child(DEPLOYMENT, "products-shard-0")
        assert body["spec"]["replicas"] == 0


async def test_no_generation_is_up_to_date_before_its_deployments_are(
    kube_api: KubeApiServer, where: Place, minio: MinioServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every status that is written counts, not only those that are seen."""
    written: list[tuple[int, str]] = []
    write = Kube.apply_status

    async def noting(kube: Kube, kind: Kind, namespace: str, name: str, status: Any, version: str) -> Body:
        written.append((status["observedGeneration"], condition({"status": status}, "UpToDate")["status"]))
        return await write(kube, kind, namespace, name, status, version)

    monkeypatch.setattr(Kube, "apply_status", noting)
    key = where.key(VECTOR_INDEX, "products")
    half = {"resources": {"requests": {"cpu": "0.5"}}}  # which the API server writes as 500m
    changes: list[tuple[dict[str, Any], int]] = [({}, 1), ({"pod": half}, 1), ({"replicas": 2}, 2)]
    async with lake(kube_api, where, minio) as it:
        await where.index()
        await it.child(DEPLOYMENT, "products-shard-0")
        for spec, pods in changes:
            body = await where.patch(VECTOR_INDEX, "products", spec)
            generation = body["metadata"]["generation"]
            await it.told(VECTOR_INDEX, "products", "UpToDate", "RollingOut")
            await at_rest(it)
            assert (generation, "True") not in written
            await rolled_out(it, "products-shard-0", pods)
            await it.told(VECTOR_INDEX, "products", "UpToDate", "Current")
            before = await at_rest(it)
            await it.turn(key)
            assert await everything(where) == before
    written.clear()
    async with lake(kube_api, where, minio) as it:
        await it.turn(key)
        assert written == []
        await where.annotate(VECTOR_INDEX, "products", {PAUSE_ANNOTATION: "true"})
        await it.told(VECTOR_INDEX, "products", "ReconciliationPaused", "Paused")
        body = await where.patch(VECTOR_INDEX, "products", {"replicas": 3})
        generation = body["metadata"]["generation"]
        await it.told(VECTOR_INDEX, "products", "UpToDate", "RollingOut")
        await at_rest(it)
        assert (await it.child(DEPLOYMENT, "products-shard-0"))["spec"]["replicas"] == 2
        await where.annotate(VECTOR_INDEX, "products", {PAUSE_ANNOTATION: None})

        async def scaled() -> bool:
            return bool((await it.child(DEPLOYMENT, "products-shard-0"))["spec"]["replicas"] == 3)

        await until(scaled)
        await at_rest(it)
        assert (generation, "True") not in written
        await rolled_out(it, "products-shard-0", 3)
        await it.told(VECTOR_INDEX, "products", "UpToDate", "Current")


async def test_an_index_of_another_owner_is_left_alone(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async with lake(kube_api, where, minio) as it:
        params = IndexParams("products", 3)
        runtime = SystemRuntime()
        await lives.begin_empty(it.store, runtime, params, 1, "elsewhere/shop/products")
        await where.index()
        await it.told(VECTOR_INDEX, "products", "Accepted", "PrefixTaken")
        await it.still()
        assert await where.get(DEPLOYMENT, "products-shard-0") is None
        table = json.loads((await it.child(CONFIG_MAP, "lakehouse-routes"))["data"]["routes.json"])
        assert table["indexes"] == {}
        runtime.close()


async def test_the_routing_table_has_every_index_of_the_releases_namespace(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async with lake(kube_api, where, minio) as it:
        await where.index()
        await it.told(VECTOR_INDEX, "products", "Ready", "Starting")

        async def listed() -> Any:
            body = await where.get(CONFIG_MAP, "lakehouse-routes")
            return (json.loads(body["data"]["routes.json"])["indexes"] if body else {}).get("products")

        found = await until(listed)
        assert (found["ready"], found["url"]) == (False, names.url("products", where.namespace))


UPGRADED = "registry.example/lakehouse:2"


async def rolled_out(it: Lake, name: str, pods: int = 1) -> None:
    """As the Deployment's controller tells."""
    generation = (await it.child(DEPLOYMENT, name))["metadata"]["generation"]
    counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), pods)
    await it.status(DEPLOYMENT, name, {"observedGeneration": generation, **counts})


async def two_indexes(kube_api: KubeApiServer, where: Place, minio: MinioServer) -> None:
    """`a` and `b`, of an operator that has ended."""
    async with lake(kube_api, where, minio) as it:
        for name in ("a", "b"):
            await where.index(name)
            await rolled_out(it, f"{name}-shard-0")


async def image(where: Place, name: str) -> str:
    body = await where.get(DEPLOYMENT, f"{name}-shard-0")
    return str(body and body["spec"]["template"]["spec"]["containers"][0]["image"])


async def upgraded(where: Place, name: str) -> None:
    async def check() -> bool:
        return await image(where, name) == UPGRADED

    await until(check, f"{name} has pods of the new make")


async def test_the_routing_table_names_every_dataset_of_the_releases_namespace(
    kube_api: KubeApiServer, where: Place, minio: MinioServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as it is looked at, and until it is gone."""
    monkeypatch.setattr(converge, "ROUTES_CHECK_S", 3_600.0)
    async with lake(kube_api, where, minio) as it:

        async def names_it() -> bool:
            body = await where.get(CONFIG_MAP, "lakehouse-routes")
            return body is not None and "rows" in json.loads(body["data"]["routes.json"])["datasets"]

        async def is_gone() -> bool:
            return not await names_it()

        await where.create(DATASET, "rows", RAW)
        await until(names_it, "a table with the dataset")
        await it.still()
        await where.kube.delete(KINDS[DATASET], where.namespace, "rows")
        await until(is_gone, "a table without the dataset")


async def test_an_upgrade_of_the_operator_reaches_one_index_at_a_time(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    await two_indexes(kube_api, where, minio)
    async with lake(kube_api, where, minio, image=UPGRADED) as it:
        await upgraded(where, "a")
        body = await it.told(VECTOR_INDEX, "b", "UpToDate", "RollingOut")
        assert "one index at a time" in condition(body, "UpToDate")["message"]
        assert await image(where, "b") != UPGRADED
        await rolled_out(it, "a-shard-0")
        await upgraded(where, "b")


async def test_an_index_that_is_paused_holds_up_no_upgrade(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    await two_indexes(kube_api, where, minio)
    await where.annotate(VECTOR_INDEX, "a", {PAUSE_ANNOTATION: "true"})
    async with lake(kube_api, where, minio, image=UPGRADED):
        await upgraded(where, "b")
        assert await image(where, "a") != UPGRADED


async def test_an_index_whose_turn_has_not_come_is_scaled_and_repaired(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    await two_indexes(kube_api, where, minio)
    before = await image(where, "b")
    async with lake(kube_api, where, minio, image=UPGRADED) as it:
        await it.told(VECTOR_INDEX, "b", "UpToDate", "RollingOut")
        await where.patch(VECTOR_INDEX, "b", {"replicas": 2})

        async def replicas(count: int) -> bool:
            body = await where.get(DEPLOYMENT, "b-shard-0")
            return body is not None and body["spec"]["replicas"] == count

        async def as_before() -> bool:
            return await replicas(2) and await image(where, "b") == before

        await until(as_before)
        at_rest = await where.get(DEPLOYMENT, "b-shard-0")
        await it.turn(where.key(VECTOR_INDEX, "b"))
        assert await where.get(DEPLOYMENT, "b-shard-0") == at_rest
        kube_api.kubectl(
            "set", "image", "-n", where.namespace, "deployment/b-shard-0", "lakehouse=elsewhere/thing:9"
        )
        await where.patch(DEPLOYMENT, "b-shard-0", {"replicas": 7})
        await until(as_before)
        await where.patch(VECTOR_INDEX, "b", {"pod": {"nodeSelector": {"disk": "fast"}}})
        await upgraded(where, "b")  # a change of its own spec waits for nobody
        await rolled_out(it, "a-shard-0")
        await it.still()
        body = await it.child(DEPLOYMENT, "b-shard-0")
        assert body["spec"]["template"]["spec"]["nodeSelector"] == {"disk": "fast"}


# ---- endings --------------------------------------------------------------------------------------------------------


async def test_without_the_policy_there_is_no_finalizer_and_the_data_stays(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async with lake(kube_api, where, minio) as it:
        await where.index()
        await it.child(DEPLOYMENT, "products-shard-0")
        assert finalizers(await where.get(VECTOR_INDEX, "products")) == []
        await where.kube.delete(KINDS[VECTOR_INDEX], where.namespace, "products")
        await it.still()
        record = await lives.current(it.store, "products")
        assert record is not None
        assert record.alive


async def test_under_delete_the_data_goes_before_the_resource_does(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async with lake(kube_api, where, minio) as it:
        await where.index(deletionPolicy="Delete")
        await it.child(DEPLOYMENT, "products-shard-0")
        assert finalizers(await where.get(VECTOR_INDEX, "products")) == [names.FINALIZER]
        await where.delete(VECTOR_INDEX, "products")
        record = await lives.current(it.store, "products")
        assert record is not None
        assert not record.alive


async def test_the_finalizer_follows_the_policy(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async with lake(kube_api, where, minio) as it:
        await where.index(deletionPolicy="Delete")
        await it.child(DEPLOYMENT, "products-shard-0")
        for policy, there in (("Retain", []), ("Delete", [names.FINALIZER])):
            await where.patch(VECTOR_INDEX, "products", {"deletionPolicy": policy})

            async def follows(there: list[str] = there) -> bool:
                return finalizers(await where.get(VECTOR_INDEX, "products")) == there

            await until(follows)


async def test_a_secret_that_is_gone_holds_no_resource_back(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async with lake(kube_api, where, minio) as it:
        await where.index(deletionPolicy="Delete")
        await it.child(DEPLOYMENT, "products-shard-0")
    await where.kube.delete(SECRET, where.namespace, "lake-s3")
    await where.kube.delete(KINDS[VECTOR_INDEX], where.namespace, "products")
    async with lake(kube_api, where, minio, secret=False):  # one that never had the key
        await where.gone(VECTOR_INDEX, "products")
        assert "CleanupSkipped" in [one["reason"] for one in await where.events()]


async def test_a_namespace_with_a_deleted_index_ends_though_its_secret_goes_first(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async with lake(kube_api, where, minio) as it:
        await where.index(deletionPolicy="Delete")
        await it.child(DEPLOYMENT, "products-shard-0")
        await it.still()
        await where.kube.delete(SECRET, where.namespace, "lake-s3")
        await where.kube.delete(KINDS["Namespace"], None, where.namespace)
        await where.delete(VECTOR_INDEX, "products")
        record = await lives.current(it.store, "products")
        assert record is not None
        assert not record.alive  # the operator had the key still


# ---- buckets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("storage", "reason"),
    [
        ({"credentialsSecretRef": {"name": "nowhere"}}, "SecretNotFound"),
        ({"credentialsSecretRef": {"name": "empty"}}, "SecretInvalid"),
        ({"credentialsSecretRef": {"name": "wrong"}}, "AccessDenied"),
        ({"credentialsSecretRef": {"name": "abroad"}}, "NotUsable"),
        ({"s3": {"bucket": "no-such-bucket"}}, "BucketNotFound"),
        ({"s3": {"endpoint": "http://127.0.0.1:9"}, "credentialsSecretRef": {"name": "lake-s3"}}, "Timeout"),
    ],
)
async def test_a_bucket_that_cannot_be_used_says_why(
    kube_api: KubeApiServer, where: Place, minio: MinioServer, storage: dict[str, Any], reason: str
) -> None:
    await put_secret(where, minio.access_key, "not the key", "wrong")
    await put_secret(where, "", "", "empty")
    await put_secret(where, minio.access_key, minio.secret_key, "abroad", AWS_REGION="no_region")
    async with lake(kube_api, where, minio) as it:
        await where.index(storage=storage)
        body = await it.told(VECTOR_INDEX, "products", "StorageReachable", reason)
        assert condition(body, "StorageReachable")["message"]
        assert await where.get(DEPLOYMENT, "products-shard-0") is None


async def test_a_secret_that_is_put_right_is_used_without_being_asked(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    await put_secret(where, minio.access_key, "not the key")
    async with lake(kube_api, where, minio, secret=False) as it:
        await where.index()
        await it.told(VECTOR_INDEX, "products", "StorageReachable", "AccessDenied")
        await put_secret(where, minio.access_key, minio.secret_key)
        await it.told(VECTOR_INDEX, "products", "StorageReachable", "ProbeSucceeded")
        await it.child(DEPLOYMENT, "products-shard-0")


async def test_a_bucket_that_goes_away_is_told_of_and_looked_at_by_one_for_all(
    kube_api: KubeApiServer, where: Place, own_minio: MinioServer
) -> None:
    async with lake(kube_api, where, own_minio) as it:
        for name in ("one", "two"):
            await where.index(name)
            await it.told(VECTOR_INDEX, name, "StorageReachable", "ProbeSucceeded")
        assert len(it.domains[-1].buckets._buckets) == 1
        own_minio.kill()
        for name in ("one", "two"):
            await it.told(VECTOR_INDEX, name, "StorageReachable", "Timeout")
        own_minio.restart()
        for name in ("one", "two"):
            await it.told(VECTOR_INDEX, name, "StorageReachable", "ProbeSucceeded")


# ---- Jobs -----------------------------------------------------------------------------------------------------------


async def test_a_refresh_is_a_job_and_its_last_word_is_told(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    minio_bucket(minio, "raw", {"rows.csv": b"id,price\na,1\n"})
    async with lake(kube_api, where, minio) as it:
        await where.create(DATASET, "rows", RAW)
        (job,) = await until(it.jobs)
        assert job["metadata"]["annotations"][names.ATTEMPT_ANNOTATION] == "1"
        assert job["spec"]["backoffLimit"] == 0
        body = await it.told(DATASET, "rows", "Fresh", "Refreshing")
        await end(it, job, {"ok": False, "reason": "SchemaConflict", "message": "a column is gone"})
        body = await it.told(DATASET, "rows", "SchemaCompatible", "SchemaChanged")
        assert condition(body, "SchemaCompatible")["message"] == "a column is gone"
        assert body["status"]["consecutiveFailures"] == 1

        async def second() -> Any:
            found = [one["metadata"]["annotations"][names.ATTEMPT_ANNOTATION] for one in await it.jobs()]
            return sorted(found) == ["1", "2"]

        await until(second)


async def test_a_source_that_is_not_there_is_told_of_without_a_job(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    minio_bucket(minio, "raw", {"rows.csv": b"id\na\n"})
    async with lake(kube_api, where, minio) as it:
        await where.create(DATASET, "rows", {"sources": [{"uri": "s3://raw/nothing-here.csv"}]})
        body = await it.told(DATASET, "rows", "Fresh", "SourceUnreachable")
        assert "nothing-here.csv" in condition(body, "Fresh")["message"]
        assert await it.jobs() == []


async def test_only_so_many_jobs_run_at_once_and_the_others_are_queued(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    minio_bucket(minio, "raw", {"rows.csv": b"id\na\n"})
    async with lake(kube_api, where, minio, jobs_at_once=1) as it:
        for name in ("one", "two"):
            await where.create(DATASET, name, RAW)
        await until(it.jobs)
        (job,) = await it.jobs()
        first = job["metadata"]["labels"][names.DATASET_LABEL]
        other = {"one": "two", "two": "one"}[first]
        await it.told(DATASET, other, "Fresh", "Queued")
        await end(it, job, {"ok": False, "reason": "Invalid", "message": "no"})
        await it.told(DATASET, other, "Fresh", "Refreshing")  # and not the first one once more


async def test_a_job_survives_the_operator_and_is_not_begun_twice(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    minio_bucket(minio, "raw", {"rows.csv": b"id\na\n"})
    async with lake(kube_api, where, minio) as it:
        await where.create(DATASET, "rows", RAW)
        (job,) = await until(it.jobs)
    async with lake(kube_api, where, minio) as it:
        await it.turn(where.key(DATASET, "rows"))
        await it.told(DATASET, "rows", "Fresh", "Refreshing")
        assert [one["metadata"]["uid"] for one in await it.jobs()] == [job["metadata"]["uid"]]
        await where.patch(DATASET, "rows", {"refresh": {"suspend": True}})  # and it can be stopped

        async def stopped() -> bool:
            return await it.jobs() == []

        await until(stopped)


def minio_bucket(minio: MinioServer, bucket: str, objects: dict[str, bytes]) -> None:
    client = minio.client()
    with contextlib.closing(client):
        with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=bucket)
        for key, data in objects.items():
            client.put_object(Bucket=bucket, Key=key, Body=data)


async def end(it: Lake, job: Body, word: dict[str, Any]) -> None:
    """The pod of a Job says its last word, and the Job ends, as the kubelet and the Job controller write it."""
    name, template = job["metadata"]["name"], job["spec"]["template"]
    labels = {**template["metadata"]["labels"], "batch.kubernetes.io/job-name": name}
    meta = {"name": f"{name}-0-x", "namespace": it.where.namespace, "labels": labels}
    await it.where.kube.create(
        {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}
    )
    code = 0 if word["ok"] else 1
    state = {"terminated": {"exitCode": code, "message": json.dumps(word)}}
    container = {
        "name": "work",
        "image": "i",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": state,
    }
    phase = "Succeeded" if word["ok"] else "Failed"
    await it.status("Pod", f"{name}-0-x", {"phase": phase, "containerStatuses": [container]})
    at = "2026-05-04T12:00:00Z"
    kinds = ("SuccessCriteriaMet", "Complete") if word["ok"] else ("FailureTarget", "Failed")
    conditions = [{"type": kind, "status": "True", "reason": "x", "lastTransitionTime": at} for kind in kinds]
    status: dict[str, Any] = {"startTime": at, "conditions": conditions}
    if word["ok"]:
        status |= {"completionTime": at, "succeeded": 1}
    else:
        status |= {"failed": 1}
    await it.status("Job", name, status)


# ---- the key of a namespace -----------------------------------------------------------------------------------------


async def test_the_peer_key_is_made_once_and_one_that_is_there_is_used(where: Place) -> None:
    runtime = SystemRuntime()
    first, second = (peers.Peers(where.kube, runtime) for _ in range(2))
    await asyncio.gather(first.ensure(where.namespace), second.ensure(where.namespace))
    assert await first.key(where.namespace) == await second.key(where.namespace)
    assert len(await first.key(where.namespace)) >= 40
    runtime.close()


def test_the_samples_default_bucket_is_the_settings() -> None:
    assert default_target().url == "s3://lake/shop"
