"""A Job that cannot start is made anew once the cause is put right, and holds up nobody; one that runs is left."""

from datetime import timedelta
from typing import Any

import pytest

from kube_api_server import KubeApiServer
from lakehouse.control import conditions
from lakehouse.control.kinds import DATASET, VECTOR_INDEX
from lakehouse_operator import lines, names
from lakehouse_operator.kube import JOB, KINDS, POD, Body
from minio_server import MinioServer
from operator_domain.lake import Lake, lake, until
from operator_domain.test_cluster import RAW, minio_bucket
from operator_domain.test_upkeep import running_pod
from operator_frame.running import Place

pytestmark = [pytest.mark.kubernetes, pytest.mark.minio]
RESTORED: dict[str, Any] = {"bootstrap": {"snapshot": {"uri": "s3://raw/rows.lhv1"}}}
UNSCHEDULABLE = {
    "phase": "Pending",
    "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    ],
}
RUNNING = {
    "phase": "Running",
    "containerStatuses": [
        {
            "name": "work",
            "image": "i",
            "imageID": "",
            "ready": True,
            "restartCount": 0,
            "state": {"running": {"startedAt": "2026-05-04T12:00:00Z"}},
        }
    ],
}


async def only_job(it: Lake) -> Body:
    """The Job there is, as soon as there is one."""
    (job,) = await until(it.jobs)
    found: Body = job
    return found


async def pod_of(it: Lake, job: Body, status: dict[str, Any]) -> None:
    """The Job's pod, as the cluster shows it."""
    name = await running_pod(it, job)
    await it.status(POD, name, status)

    def known() -> bool:
        body = it.operator.cache.resource((POD, it.where.namespace, name))
        return bool((body or {}).get("status", {}).get("phase") == status["phase"])

    await until(known)


def memory(job: Body) -> str:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return str(container["resources"].get("limits", {}).get("memory", ""))


async def begin(where: Place, kind: str) -> None:
    if kind == DATASET:
        await where.create(DATASET, "rows", RAW)
    else:
        await where.index("rows", **RESTORED)


async def give(where: Place, kind: str, limit: str) -> None:
    resources = {"limits": {"memory": limit}}
    part = "job" if kind == DATASET else "pod"
    await where.patch(kind, "rows", {part: {"resources": resources}})


@pytest.mark.parametrize("kind", [VECTOR_INDEX, DATASET])
async def test_a_job_that_waits_for_a_node_is_made_anew_when_it_asks_for_less(
    kube_api: KubeApiServer, where: Place, minio: MinioServer, kind: str
) -> None:
    minio_bucket(minio, "raw", {"rows.csv": b"id\na\n"})
    async with lake(kube_api, where, minio) as it:
        await begin(where, kind)
        first = await only_job(it)
        await pod_of(it, first, UNSCHEDULABLE)
        await it.turn(where.key(kind, "rows"))
        assert [one["metadata"]["uid"] for one in await it.jobs()] == [first["metadata"]["uid"]]
        await give(where, kind, "3Gi")

        async def replaced() -> bool:
            return [memory(one) for one in await it.jobs()] == ["3Gi"]

        await until(replaced, "a Job with the new limit in the place of the old")
        await pod_of(it, await only_job(it), RUNNING)
        await give(where, kind, "4Gi")
        for _ in range(3):
            await it.turn(where.key(kind, "rows"))
        assert await replaced()  # it runs, and is left to


async def test_a_job_that_ran_out_of_memory_is_followed_by_another_as_soon_as_there_is_more(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async with lake(kube_api, where, minio) as it:
        await begin(where, VECTOR_INDEX)
        first = await only_job(it)
        name = first["metadata"]["name"]
        often = {"annotations": {names.ATTEMPT_ANNOTATION: "7"}}  # the next wait is five minutes
        await where.kube.patch_metadata(KINDS[JOB], where.namespace, name, often)
        await fail(it, first)
        for _ in range(3):
            await it.turn(where.key(VECTOR_INDEX, "rows"))
        assert len(await it.jobs()) == 1
        await give(where, VECTOR_INDEX, "3Gi")

        async def another() -> bool:
            found = {memory(one): one["metadata"]["annotations"] for one in await it.jobs()}
            return "3Gi" in found and found["3Gi"][names.ATTEMPT_ANNOTATION] == "8"

        await until(another, "another Job at once")


async def fail(it: Lake, job: Body) -> None:
    """As its controller ends a Job whose pod was killed."""
    at = conditions.timestamp(it.operator._runtime.now())
    ended = [
        {"type": one, "status": "True", "reason": "BackoffLimitExceeded", "lastTransitionTime": at}
        for one in ("FailureTarget", "Failed")
    ]
    await it.status(JOB, job["metadata"]["name"], {"startTime": at, "conditions": ended, "failed": 1})
    await it.told(VECTOR_INDEX, "rows", "UpToDate", "RestoreFailed")


async def test_a_job_that_cannot_start_does_not_hold_up_others(
    kube_api: KubeApiServer, where: Place, minio: MinioServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    minio_bucket(minio, "raw", {"rows.csv": b"id\na\n"})
    async with lake(kube_api, where, minio, jobs_at_once=1) as it:
        await where.create(DATASET, "first", RAW)
        stuck = await only_job(it)
        await pod_of(it, stuck, UNSCHEDULABLE)
        await where.create(DATASET, "second", RAW)
        await it.told(DATASET, "second", "Fresh", "Queued")
        monkeypatch.setattr(lines, "GRACE", timedelta())

        async def both() -> bool:
            return len(await it.jobs()) == 2

        await until(both, "the second begins though the first has not ended")
