"""What nobody tells the operator of is found and put right all the same: Secrets, tables, certificates, leftovers."""

import subprocess
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from cluster_samples import index, settings
from cluster_samples import where as default_target
from kube_api_server import KubeApiServer
from lakehouse.control.kinds import DATASET, VECTOR_INDEX
from lakehouse.core import names as keys
from lakehouse.core.errors import Invalid, Unavailable
from lakehouse.runtime import SystemRuntime
from lakehouse_operator import converge, jobs, names, peers, resources, routes
from lakehouse_operator.children import says
from lakehouse_operator.kube import CONFIG_MAP, KINDS, POD, SECRET, Body
from minio_server import MinioServer
from operator_domain.lake import Lake, lake, until
from operator_domain.test_cluster import RAW, minio_bucket
from operator_frame.running import Place, condition

pytestmark = [pytest.mark.kubernetes, pytest.mark.minio]
LEFT = UUID("33333333333333333333333333333333")


class Clock(SystemRuntime):
    """Stands still until it is moved."""

    now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


def certificate(folder: Path) -> str:
    """One that a bucket's endpoint could have signed itself."""
    made = folder / "ca.crt"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=store"]
    subprocess.run(
        [*command, "-keyout", str(folder / "key"), "-out", str(made)], check=True, capture_output=True
    )
    return made.read_text()


async def test_a_peer_key_that_was_deleted_is_made_again_as_it_was(
    where: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "CHECK_S", 0.0)
    runtime = SystemRuntime()
    ours = peers.Peers(where.kube, runtime)
    await ours.ensure(where.namespace)
    key = await ours.key(where.namespace)
    await where.kube.delete(SECRET, where.namespace, names.PEER_KEY_SECRET)
    await ours.ensure(where.namespace)
    assert await peers.Peers(where.kube, runtime).key(where.namespace) == key  # pods that run know no other
    made = await where.kube.get(SECRET, where.namespace, names.PEER_KEY_SECRET)
    assert made is not None
    assert made["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    runtime.close()


async def test_a_peer_key_made_in_the_place_of_a_releases_own_is_the_releases(where: Place) -> None:
    """Helm refuses an object of its manifest that does not say so, and cannot upgrade or roll back any more."""
    runtime = SystemRuntime()
    await peers.Peers(where.kube, runtime, {where.namespace: "lake", "other": "x"}).ensure(where.namespace)
    made = await where.kube.get(SECRET, where.namespace, names.PEER_KEY_SECRET)
    assert made is not None
    assert made["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm"
    assert made["metadata"]["annotations"] == {
        "helm.sh/resource-policy": "keep",
        "meta.helm.sh/release-name": "lake",
        "meta.helm.sh/release-namespace": where.namespace,
    }
    runtime.close()


async def test_a_changed_peer_key_is_shown_when_every_pod_has_it_or_one_knows_no_other(where: Place) -> None:
    clock = Clock(1)
    ours = peers.Peers(where.kube, clock)
    await ours.ensure(where.namespace)
    first = await ours.key(where.namespace)

    async def change(key: str) -> None:
        await where.kube.delete(SECRET, where.namespace, names.PEER_KEY_SECRET)
        await where.kube.create(peers.secret(where.namespace, key))
        clock.now_s += peers.CHECK_S
        await ours.ensure(where.namespace)

    await change("the-second-peer-key")
    assert await ours.key(where.namespace) == first
    clock.now_s += peers.PREVIOUS_S - 1
    assert await ours.key(where.namespace) == first
    clock.now_s += 1
    assert await ours.key(where.namespace) == "the-second-peer-key"

    await change("the-third-peer-key")
    assert await ours.key(where.namespace) == "the-second-peer-key"
    ours.refused(where.namespace)
    assert await ours.key(where.namespace) == "the-third-peer-key"
    ours.refused(where.namespace)
    assert await ours.key(where.namespace) == "the-third-peer-key"  # as its Secret says again
    with pytest.raises(Invalid, match="16 characters"):
        await change("short")
    assert await ours.key(where.namespace) == "the-third-peer-key"  # as pods keep it, too
    clock.close()


async def test_the_releases_namespace_has_a_peer_key_before_anything_is_declared(
    kube_api: KubeApiServer, where: Place, minio: MinioServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pods of the chart do not start without it."""
    monkeypatch.setattr(peers, "CHECK_S", 0.2)
    async with lake(kube_api, where, minio) as it:
        made = await it.child(str(SECRET), names.PEER_KEY_SECRET)
        await where.kube.delete(SECRET, where.namespace, names.PEER_KEY_SECRET)
        again = await it.child(str(SECRET), names.PEER_KEY_SECRET)
        assert again["data"] == made["data"]


async def test_a_peer_key_that_cannot_be_made_is_tried_again(
    where: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "AGAIN_S", 0.05)
    create, asked = where.kube.create, []

    async def sometimes(body: Body) -> Body:
        asked.append(body)
        if len(asked) < 3:
            raise Unavailable("the API server is away")
        return await create(body)

    monkeypatch.setattr(where.kube, "create", sometimes)
    runtime = SystemRuntime()
    ours = peers.Peers(where.kube, runtime)
    ours.start(where.namespace)
    await until(lambda: where.kube.get(SECRET, where.namespace, names.PEER_KEY_SECRET))
    assert len(asked) == 3
    await ours.close()
    runtime.close()


async def test_what_is_taken_back_from_all_pods_is_gone_from_a_template(where: Place) -> None:
    """The API server keeps an older field of the same meaning as serviceAccountName; the other one must win."""
    asked = {
        "serviceAccountName": "lake-index",
        "priorityClassName": "high",
        "nodeSelector": {"disk": "fast"},
        "annotations": {"example.com/team": "data"},
        "labels": {"example.com/team": "data"},
        "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "cache": {"size": "20Gi"},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
        ],
    }

    async def applied(defaults: Body) -> Body:
        wanted = resources.index(index(), default_target(), settings(pod_defaults=defaults), suspended=False)[
            -1
        ]
        wanted["metadata"] |= {"namespace": where.namespace, "ownerReferences": []}
        made = await where.kube.apply(wanted)
        assert says(made, wanted)  # after a restart nothing is written
        template: Body = made["spec"]["template"]
        return template

    bare = await applied({})
    told = await applied(asked)
    assert told["spec"]["serviceAccountName"] == "lake-index"
    assert told["spec"]["priorityClassName"] == "high"
    assert await applied({}) == bare


async def test_the_routing_table_is_written_again_when_it_is_gone(
    kube_api: KubeApiServer, where: Place, minio: MinioServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converge, "ROUTES_CHECK_S", 0.2)
    monkeypatch.setattr(routes, "CHECK_S", 0.0)
    async with lake(kube_api, where, minio) as it:
        await where.index()
        await it.told(VECTOR_INDEX, "products", "Ready", "Starting")
        body = await it.child(CONFIG_MAP, "lakehouse-routes")
        await it.still()
        version = (await it.child(CONFIG_MAP, "lakehouse-routes"))["metadata"]["resourceVersion"]
        await where.kube.delete(CONFIG_MAP, where.namespace, "lakehouse-routes")
        again = await it.child(CONFIG_MAP, "lakehouse-routes")
        assert again["data"] == body["data"]
        version = again["metadata"]["resourceVersion"]
        for _ in range(3):
            await it.operator.controller._world.routes()
        assert (await it.child(CONFIG_MAP, "lakehouse-routes"))["metadata"]["resourceVersion"] == version


async def test_certificates_are_put_back_and_go_when_they_are_not_asked_for(
    kube_api: KubeApiServer, where: Place, minio: MinioServer, tmp_path: Path
) -> None:
    async with lake(kube_api, where, minio) as it:
        await where.index(storage={"s3": {"caBundle": certificate(tmp_path)}})
        await it.child("Deployment", "products-shard-0")
        name = names.certificates(VECTOR_INDEX, "products")
        first = await it.child(CONFIG_MAP, name)
        await where.kube.delete(CONFIG_MAP, where.namespace, name)

        async def back() -> bool:
            body = await where.get(CONFIG_MAP, name)
            return body is not None and body["data"] == first["data"]

        await until(back)
        await where.patch(VECTOR_INDEX, "products", {"storage": None})
        await where.gone(CONFIG_MAP, name)


async def test_what_a_killed_build_left_is_marked_and_a_living_index_is_not(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async with lake(kube_api, where, minio) as it:
        await where.index()
        await it.told(VECTOR_INDEX, "products", "Ready", "Starting")
        left = keys.life_prefix("products", LEFT)
        await it.store.put(f"{left}0/snapshot/0", b"content of a build that never ended")
        sweeper = it.domains[-1].sweeper
        await sweeper.sweep_due()  # its time is some time within a day

        async def marks() -> list[str]:
            found = await it.store.list(keys.VECTORS)
            return [info.key for info in found if "/unnamed/" in info.key]

        assert await marks() == []
        sweeper._due_s[where.key(VECTOR_INDEX, "products")] = 0.0
        await sweeper.sweep_due()
        (mark,) = await marks()
        assert mark.startswith(left)


@pytest.mark.parametrize("kind", [VECTOR_INDEX, DATASET])
async def test_why_a_job_has_no_pods_is_told(
    kube_api: KubeApiServer, where: Place, minio: MinioServer, kind: str
) -> None:
    minio_bucket(minio, "raw", {"rows.csv": b"id\na\n"})
    async with lake(kube_api, where, minio) as it:
        if kind == DATASET:
            await where.create(DATASET, "rows", RAW)
        else:
            await where.index("rows", bootstrap={"snapshot": {"uri": "s3://raw/rows.lhv1"}})
        (job,) = await until(it.jobs)
        message = (
            'pods "x" is forbidden: exceeded quota: pods, requested: pods=1, used: pods=0, limited: pods=0'
        )
        await where.kube.create(refused(job, message))
        await it.status(
            "Job",
            job["metadata"]["name"],
            {"startTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 30))},
        )
        type_ = "Fresh" if kind == DATASET else "UpToDate"

        async def told() -> bool:
            body = await where.get(kind, "rows")
            return str(condition(body, type_).get("message")) == f"FailedCreate: {message}"

        await until(told, f"{kind} tells of the quota")


def refused(job: Body, message: str) -> Body:
    """As the Job controller tells of a pod that it may not make."""
    meta = job["metadata"]
    at = "2026-05-04T12:00:00Z"
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{meta['name']}.1", "namespace": meta["namespace"]},
        "involvedObject": {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": meta["name"],
            "namespace": meta["namespace"],
            "uid": meta["uid"],
        },
        "type": "Warning",
        "reason": "FailedCreate",
        "message": message,
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
        "source": {"component": "job-controller"},
    }


async def test_under_delete_the_pods_of_a_job_that_was_stopped_are_waited_for(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    minio_bucket(minio, "raw", {"rows.csv": b"id\na\n"})
    async with lake(kube_api, where, minio) as it:
        await where.create(DATASET, "rows", {**RAW, "deletionPolicy": "Delete"})
        (job,) = await until(it.jobs)
        pod = await running_pod(it, job)
        await where.kube.delete(KINDS[DATASET], where.namespace, "rows")

        async def stopped() -> bool:
            return await it.jobs() == []

        await until(stopped)
        for _ in range(3):
            await it.turn(where.key(DATASET, "rows"))
        assert await where.get(DATASET, "rows") is not None  # it might still publish a version
        path = KINDS[POD].path(where.namespace, pod)
        await where.kube._ask("DELETE", path, {"gracePeriodSeconds": 0})
        await where.gone(DATASET, "rows")


async def running_pod(it: Lake, job: Body) -> str:
    """A pod of a Job, as its controller makes it; its name."""
    name, template = job["metadata"]["name"], job["spec"]["template"]
    labels: dict[str, Any] = {**template["metadata"]["labels"], jobs.JOB_NAME_LABEL: name}
    pod = f"{name}-0-x"
    meta = {"name": pod, "namespace": it.where.namespace, "labels": labels}
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}
    await it.where.kube.create(made)
    await until(lambda: it.operator.cache.resource((POD, it.where.namespace, pod)))
    return pod
