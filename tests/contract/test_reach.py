"""What a process tells of its store: trouble that lasts, for as long as it lasts, and no single failure."""

import asyncio
import contextlib
from collections.abc import Iterator

import pytest

from lakehouse.core.errors import (
    Conflict,
    CredentialsRefused,
    LakehouseError,
    NotFound,
    StorageFull,
    Unavailable,
)
from lakehouse.runtime import SystemRuntime
from lakehouse.store import reach as reach_module
from lakehouse.store.memory import MemoryStore
from lakehouse.store.reach import LASTS_S, MESSAGE_MAX, PENDING_S, RIGHTS, SILENT_S, Reach, ReachedStore
from lakehouse.store.wrappers import Call, T, Wrapper


class Clock(SystemRuntime):
    """Stands still until it is moved."""

    now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


class Refusing(Wrapper):
    """Keys that may not do what `refused` says."""

    refused: frozenset[str] = frozenset()

    async def _around(self, operation: str, key: str, call: Call[T]) -> T:
        if operation in self.refused:
            raise CredentialsRefused(f"refused. key=`{key}`")
        return await call()


@pytest.fixture
def clock() -> Iterator[Clock]:
    found = Clock()
    yield found
    found.close()


@pytest.fixture
def reach(clock: Clock) -> Reach:
    return Reach(clock)


def met(reach: Reach, operation: str = "list", error: LakehouseError | None = None) -> None:
    with contextlib.suppress(LakehouseError), reach.asking(operation):
        if error is not None:
            raise error


AWAY = Unavailable("no answer")


def test_one_failure_that_is_repeated_well_is_not_told(reach: Reach, clock: Clock) -> None:
    met(reach, error=AWAY)
    assert (reach.trouble, reach.in_doubt, reach.doubted.is_set()) == ("", True, True)
    clock.now_s += SILENT_S - 0.1
    assert reach.trouble == ""
    met(reach)
    clock.now_s += SILENT_S
    assert (reach.trouble, reach.in_doubt) == ("", False)


def test_two_failures_that_lie_apart_are_told_until_the_next_answer(reach: Reach, clock: Clock) -> None:
    met(reach, error=AWAY)
    met(reach, error=AWAY)  # of the same moment: one connection may have ended
    assert reach.trouble == ""
    clock.now_s += LASTS_S
    met(reach, error=Unavailable("no answer either"))
    assert reach.trouble == "no answer"  # the words of one trouble stay
    met(reach, error=CredentialsRefused("no"))
    assert reach.trouble == "no"
    met(reach)
    assert reach.trouble == ""


def test_silence_after_one_failure_is_told(reach: Reach, clock: Clock) -> None:
    met(reach, error=AWAY)
    clock.now_s += SILENT_S
    assert reach.trouble == "no answer"


def test_a_list_that_does_not_come_back_is_told_before_it_gives_up(reach: Reach, clock: Clock) -> None:
    with reach.asking("list"), reach.asking("download"):
        clock.now_s += PENDING_S - 0.1
        assert reach.trouble == ""
        clock.now_s += 0.1
        assert "not answered a list" in reach.trouble
    assert reach.trouble == ""


def test_a_request_that_others_overtook_counts_from_its_end(reach: Reach, clock: Clock) -> None:
    with contextlib.suppress(Unavailable), reach.asking("get"):
        clock.now_s += 60
        met(reach, "get")
        raise AWAY
    assert reach.trouble == ""


@pytest.mark.parametrize("answer", [NotFound("no"), Conflict("no"), StorageFull("no")], ids=repr)
def test_a_no_is_an_answer(reach: Reach, clock: Clock, answer: LakehouseError) -> None:
    met(reach, "create", AWAY)
    met(reach, "create", answer)
    clock.now_s += SILENT_S
    assert reach.trouble == ""


def test_keys_that_may_only_read_are_told_of_whatever_is_read(reach: Reach, clock: Clock) -> None:
    met(reach, "create", CredentialsRefused("you may not"))
    for operation in ("list", "get", "delete"):
        met(reach, operation)
    clock.now_s += SILENT_S
    assert reach.trouble == "you may not"


def test_what_is_told_is_cut(reach: Reach, clock: Clock) -> None:
    met(reach, error=Unavailable("x" * 1_000))
    clock.now_s += SILENT_S
    assert reach.trouble == "x" * MESSAGE_MAX


@pytest.mark.parametrize("refused", ["get", "put", "delete"])
async def test_what_failed_is_tried_again_until_it_goes_well_and_leaves_nothing(
    reach: Reach, clock: Clock, refused: str
) -> None:
    inner = MemoryStore(exclusive=False)
    keys = Refusing(inner, clock)
    store = ReachedStore(keys, clock, reach)
    with contextlib.suppress(CredentialsRefused):
        keys.refused = frozenset({refused})
        await (store.put("k", b"") if refused == "put" else getattr(store, refused)("k"))
    for _ in range(3):
        clock.now_s += LASTS_S
        await reach.try_again(store)
        assert reach.trouble.startswith("refused")
    keys.refused = frozenset()
    await reach.try_again(store)
    assert (reach.trouble, reach.in_doubt) == ("", False)
    assert await inner.list("") == []


async def test_nothing_is_tried_where_nothing_failed(reach: Reach, clock: Clock) -> None:
    keys = Refusing(MemoryStore(exclusive=False), clock)
    keys.refused = frozenset(RIGHTS)
    await reach.try_again(ReachedStore(keys, clock, reach))
    assert not reach.in_doubt


async def test_an_attempt_that_hangs_is_not_waited_for(
    reach: Reach, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hanging(Wrapper):
        async def _around(self, operation: str, key: str, call: Call[T]) -> T:
            await asyncio.Event().wait()
            return await call()

    monkeypatch.setattr(reach_module, "TRY_S", 0.01)
    met(reach, "put", AWAY)
    await reach.try_again(ReachedStore(Hanging(MemoryStore(exclusive=False), clock), clock, reach))
    clock.now_s += SILENT_S
    assert reach.trouble == "no answer"


def test_every_operation_of_a_store_needs_a_right() -> None:
    verbs = {name for name in vars(Wrapper) if not name.startswith("_")} - {"url", "exclusive", "close"}
    assert verbs == set(RIGHTS)
