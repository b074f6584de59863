"""Who leads: taking, keeping, losing and handing over, on a clock that runs twice as fast."""

import asyncio

import pytest

from kube_api_server import KubeApiServer
from lakehouse.runtime import SystemRuntime
from lakehouse_operator.kube import LEASE, Body, Kube
from lakehouse_operator.lease import DURATION_S, Lease, LeaseLost
from operator_frame.running import SOON_S, Place, until

pytestmark = pytest.mark.kubernetes
NAME = "lakehouse-operator"


class Fast(SystemRuntime):
    """Two seconds pass in one: a renewal still has four real ones, which a busy machine may need."""

    FACTOR = 2.0

    def monotonic(self) -> float:
        return super().monotonic() * self.FACTOR

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds / self.FACTOR)


def lease(where: Place, identity: str, runtime: Fast | None = None) -> Lease:
    return Lease(where.kube, runtime or Fast(), where.namespace, NAME, identity)


async def ended(task: "asyncio.Future[None]") -> None:
    task.cancel()
    await asyncio.wait([task])


async def stored(where: Place) -> Body:
    body = await where.kube.get(LEASE, where.namespace, NAME)
    assert body is not None
    return body


async def test_one_leads_and_the_other_waits_until_it_lets_go(where: Place) -> None:
    runtime = Fast()
    first, second = lease(where, "a", runtime), lease(where, "b", runtime)
    await first.acquire()
    keeping = asyncio.ensure_future(first.keep())
    assert (await stored(where))["metadata"]["labels"]["app.kubernetes.io/component"] == "operator"
    waiting = asyncio.ensure_future(second.acquire())
    # Longer than the lease lasts: it is renewed all the while.
    await runtime.sleep(2.5 * DURATION_S)
    assert (first.held, second.held, second.answered) == (True, False, True)
    assert not keeping.done()
    await ended(keeping)
    await first.release()
    assert not (await stored(where))["spec"]["holderIdentity"].startswith("a_")  # it does not have to run out
    await asyncio.wait_for(waiting, SOON_S)
    assert second.held
    spec = (await stored(where))["spec"]
    assert spec["holderIdentity"].startswith("b_")
    assert (spec["leaseDurationSeconds"], spec["leaseTransitions"]) == (10, 1)


async def test_a_leader_that_died_is_taken_over_from_when_its_lease_has_run_out(where: Place) -> None:
    runtime = Fast()
    first, second = lease(where, "a", runtime), lease(where, "b", runtime)
    await first.acquire()
    began_s = runtime.monotonic()
    await asyncio.wait_for(second.acquire(), SOON_S)
    assert runtime.monotonic() - began_s >= DURATION_S


async def test_a_lease_that_somebody_took_is_lost(where: Place) -> None:
    first = lease(where, "a")
    await first.acquire()
    body = await stored(where)
    body["spec"]["holderIdentity"] = "thief"
    await where.kube.replace(body)
    with pytest.raises(LeaseLost, match="another replica leads"):
        await asyncio.wait_for(first.keep(), SOON_S)
    assert not first.held
    await first.release()
    assert (await stored(where))["spec"]["holderIdentity"] == "thief"


async def test_a_lease_that_was_deleted_is_lost(where: Place) -> None:
    first = lease(where, "a")
    await first.acquire()
    await where.kube.delete(LEASE, where.namespace, NAME)
    with pytest.raises(LeaseLost):
        await asyncio.wait_for(first.keep(), SOON_S)


async def test_a_renewal_of_ours_whose_answer_was_lost_is_no_loss(where: Place) -> None:
    runtime = Fast()
    first = lease(where, "a", runtime)
    await first.acquire()
    before = await stored(where)
    await where.kube.replace(before | {"spec": before["spec"] | {"renewTime": "2026-01-01T00:00:00.000000Z"}})
    keeping = asyncio.ensure_future(first.keep())

    async def renewed() -> bool:
        return keeping.done() or (await stored(where))["spec"]["renewTime"] > before["spec"]["renewTime"]

    await until(renewed)
    assert not keeping.done()
    assert first.held
    await ended(keeping)


async def test_an_api_server_that_stays_away_ends_the_leader_before_anybody_takes_over(
    kube_api: KubeApiServer, where: Place
) -> None:
    runtime, kube = Fast(), Kube(kube_api.login)
    first = Lease(kube, runtime, where.namespace, NAME, "a")
    await first.acquire()
    await asyncio.to_thread(kube_api.kill)
    try:
        with pytest.raises(LeaseLost, match="could not be renewed in 8 s"):
            await asyncio.wait_for(first.keep(), SOON_S)
        assert not first.held
    finally:
        await asyncio.to_thread(kube_api.start)
        await kube.close()


async def test_a_renewal_that_hangs_ends_the_leader_in_time(
    where: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(body: Body) -> Body:
        await asyncio.sleep(3_600)
        return body

    first = Lease(where.kube, SystemRuntime(), where.namespace, NAME, "a")
    await first.acquire()
    monkeypatch.setattr("lakehouse_operator.lease.RETRY_S", 0.1)
    monkeypatch.setattr("lakehouse_operator.lease.RENEW_DEADLINE_S", 0.5)
    monkeypatch.setattr(where.kube, "replace", hang)
    with pytest.raises(LeaseLost, match="could not be renewed in"):
        await asyncio.wait_for(first.keep(), SOON_S)
    assert not first.held


async def test_of_two_that_begin_at_once_one_leads(where: Place) -> None:
    leases = [lease(where, name) for name in "abcde"]
    tasks = [asyncio.ensure_future(one.acquire()) for one in leases]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0.3)
    assert sum(one.held for one in leases) == 1
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
