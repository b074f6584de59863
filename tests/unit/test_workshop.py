"""Work beside the loop: how it ends, and what is remembered of it."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from lakehouse.control.plan import Ingest
from lakehouse.core.errors import Invalid
from lakehouse.loop import work
from lakehouse.loop.work import Work, Workshop
from lakehouse.runtime import SystemRuntime

KEY = ("Dataset", "d")
ACTION = Ingest("k")


async def begun(body: Callable[[Work], Awaitable[None]]) -> Workshop[tuple[str, str]]:
    shop: Workshop[tuple[str, str]] = Workshop(SystemRuntime(), lambda _: None)
    shop.start(KEY, ACTION, body)
    await asyncio.sleep(0)
    return shop


async def endless(_: Work) -> None:
    await asyncio.Event().wait()


async def test_work_that_is_stopped_for_its_deadline_counts_as_failed() -> None:
    shop = await begun(endless)
    await shop.stop(KEY, "it took longer than 9 s")
    (failed,) = shop.failures(KEY)
    assert (failed.act, failed.subject, failed.reason) == (ACTION.act, "k", "DeadlineExceeded")
    assert (failed.message, failed.attempts) == ("it took longer than 9 s", 1)
    shop.start(KEY, ACTION, endless)
    await asyncio.sleep(0)
    await shop.stop(KEY, "again")
    assert shop.failures(KEY)[0].attempts == 2
    assert shop.running(KEY) is None


async def test_work_that_is_stopped_for_no_fault_of_its_own_is_not_held_back() -> None:
    shop = await begun(endless)
    await shop.stop(KEY)
    assert (shop.running(KEY), shop.failures(KEY)) == (None, ())


async def test_a_cancellation_that_gets_lost_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "CANCEL_AGAIN_S", 0.01)
    met = []

    async def stubborn(_: Work) -> None:
        for _attempt in range(3):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                met.append(1)
        raise Invalid("it had its own end")

    shop = await begun(stubborn)
    await shop.stop(KEY, "too long")
    assert (len(met), shop.running(KEY)) == (3, None)
    assert [one.reason for one in shop.failures(KEY)] == ["Invalid"]


async def test_all_work_is_stopped_at_once() -> None:
    shop = await begun(endless)
    shop.start(("Dataset", "e"), ACTION, endless)
    await shop.stop_all()
    assert shop.all_running() == {}


async def test_a_stop_can_itself_be_stopped() -> None:
    async def deaf(_: Work) -> None:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    shop = await begun(deaf)
    stopping = asyncio.ensure_future(shop.stop(KEY))
    await asyncio.sleep(0.01)
    stopping.cancel()
    assert isinstance((await asyncio.gather(stopping, return_exceptions=True))[0], asyncio.CancelledError)
    await shop.stop(KEY)
