"""A schedule's snapshots in a cluster: made when they are due, retired with their files, and deletable without help."""

from datetime import UTC, datetime
from typing import Any

import pytest

from kube_api_server import KubeApiServer
from lakehouse import named_snapshots
from lakehouse.control import conditions, index_snapshot, schedule
from lakehouse.control.kinds import INDEX_SNAPSHOT, VECTOR_INDEX
from lakehouse.control.state import SCHEDULED_FOR_ANNOTATION, SnapshotState
from lakehouse_operator.kube import KINDS, Body
from minio_server import MinioServer
from operator_domain.lake import Lake, lake, until
from operator_domain.little_kubelet import pods
from operator_domain.test_cluster import finalizers
from operator_frame.running import Place, condition

pytestmark = [pytest.mark.kubernetes, pytest.mark.minio, pytest.mark.timeout(600)]
EVERY_S = 3
"""Cron knows no less than a minute: the tests' clock strikes more often."""
KEPT = 2


@pytest.fixture
def quick_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    def latest(expression: str, zone: str, moment: datetime) -> datetime:
        return datetime.fromtimestamp(moment.timestamp() // EVERY_S * EVERY_S, UTC)

    def following(expression: str, zone: str, moment: datetime) -> datetime:
        return datetime.fromtimestamp((moment.timestamp() // EVERY_S + 1) * EVERY_S, UTC)

    monkeypatch.setattr(schedule, "latest_until", latest)
    monkeypatch.setattr(schedule, "next_after", following)


async def taken(it: Lake) -> dict[str, Body]:
    """The IndexSnapshots there are, by name."""
    found = await it.where.kube.list(KINDS[INDEX_SNAPSHOT], it.where.namespace)
    return {body["metadata"]["name"]: body for body in found}


async def files(it: Lake) -> set[str]:
    """The named snapshots that are whole in the bucket."""
    return {one.name for one in await named_snapshots.kept(it.store, "products")}


@pytest.mark.usefixtures("quick_schedules")
@pytest.mark.parametrize("policy", ["Retain", "Delete"])
async def test_scheduled_snapshots_are_made_retired_and_told_of(
    kube_api: KubeApiServer, where: Place, minio: MinioServer, policy: str
) -> None:
    async with lake(kube_api, where, minio) as it, pods(it):
        asked: dict[str, Any] = {"schedule": "* * * * *", "retention": {"keepLast": KEPT}}
        await where.index(snapshots=asked, deletionPolicy=policy)
        whole: set[str] = set()

        async def enough() -> bool:
            for name, body in (await taken(it)).items():
                if index_snapshot.state_of(body.get("status") or {}) is SnapshotState.SUCCEEDED:
                    whole.add(name)
            return len(whole) > KEPT + 1

        await until(enough, "snapshots are taken and others retired")
        body = await it.told(VECTOR_INDEX, "products", "SnapshotCurrent", "WithinSchedule")
        told = body["status"]["snapshot"]
        upcoming = conditions.moment(told["nextScheduleTime"])
        assert upcoming is not None
        assert upcoming.timestamp() % EVERY_S == 0
        assert abs((upcoming - datetime.now(UTC)).total_seconds()) < 60
        await where.patch(VECTOR_INDEX, "products", {"snapshots": {**asked, "suspend": True}})

        async def settled() -> bool:
            return len(await taken(it)) == KEPT and await files(it) == set(await taken(it))

        await until(settled, "what is not kept is gone, and its files with it")
        left = await taken(it)
        for name, one in left.items():
            due = datetime.fromisoformat(one["metadata"]["annotations"][SCHEDULED_FOR_ANNOTATION])
            assert name == schedule.snapshot_name("products", due)
            assert due <= datetime.fromisoformat(one["metadata"]["creationTimestamp"])
            assert one["spec"]["deletionPolicy"] == policy
            assert bool(finalizers(one)) is (policy == "Delete")

        async def newest() -> str:
            body = await where.get(VECTOR_INDEX, "products")
            assert condition(body, "SnapshotCurrent")["reason"] in ("WithinSchedule", "Suspended")
            return str((body or {})["status"]["snapshot"]["lastSuccessful"]["name"])

        async def current() -> bool:
            return await newest() == max(left)

        await until(current)
        age = sample(it, "lakehouse_operator_snapshot_age_seconds", where.namespace)
        ended = conditions.moment(left[max(left)]["status"]["completedAt"])
        assert ended is not None
        assert age == pytest.approx((datetime.now(UTC) - ended).total_seconds(), abs=30)


def sample(it: Lake, metric: str, namespace: str) -> float | None:
    labels = {"namespace": namespace, "name": "products"}
    return it.operator.metrics.registry.get_sample_value(metric, labels)


@pytest.mark.usefixtures("quick_schedules")
async def test_snapshots_of_a_retained_index_go_with_their_namespace_though_nobody_helps(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async with lake(kube_api, where, minio) as it, pods(it):
        await where.index(snapshots={"schedule": "* * * * *"})
        await until(lambda: files(it), "a snapshot is whole")
    names = sorted(await taken(it))
    for name in names:
        await where.kube.delete(KINDS[INDEX_SNAPSHOT], where.namespace, name)
    assert names
    assert await taken(it) == {}
