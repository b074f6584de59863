"""Directed schedules of one life that follows another: each was once a way to lose a write, or to stop for good.

The bucket, the processes and the clock are simulated; the engine is the real one.
"""

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import replace
from uuid import UUID

import pytest

from lakehouse import beginning, building, carrying, lives
from lakehouse.core import names
from lakehouse.core.entry import EncodedRequest, Entry
from lakehouse.core.errors import Corrupt, NotFound, Unavailable
from lakehouse.core.types import Consistency
from lakehouse.core.window import IdempotencyWindow
from lakehouse.log import ShardLog
from lakehouse.server.http import BodyBudget, Request, Response
from lakehouse.server.vectors_api import VectorsApi
from lakehouse.testing.history import Lost
from lakehouse.testing.schedules import PARAMS, Act, present
from lakehouse.testing.world import Fault, Hold, Process, World, run
from lakehouse.writing import Writer
from successions import OTHER, RECORD_ONE, SETTINGS, begun, contents, published, put, rows


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Faults warn thousands of times; a failure names its call instead."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


# ---------------------------------------------------------------- ahead of the end


@pytest.mark.parametrize(("old_shards", "new_shards"), [(2, 1), (3, 2), (1, 3)])
def test_what_is_taken_over_ahead_leaves_out_nothing_of_other_shards(
    old_shards: int, new_shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes go on in every old shard after much was taken over ahead, where the shards differ in number."""
    monkeypatch.setattr(carrying, "AHEAD_ENTRIES", 0)

    async def play(seed: int) -> None:
        world = World(seed, SETTINGS)
        builder, writer = await begun(world, old_shards)
        start = await builder.indexes.vacancy(PARAMS.name, new_shards, replaces=True)
        await put(writer, {f"a{j}": j for j in range(12)})
        hold = world.hold(builder, "create", RECORD_ONE)
        work = builder.run(
            building.build(
                builder.indexes, PARAMS, new_shards, rows({"built": 1}), replaces=True, start=start
            )
        )
        await hold.reached.wait()
        await put(writer, {f"a{j}": 100 + j for j in range(12)} | {f"b{j}": j for j in range(12)})
        hold.release()
        await work
        expected = {f"a{j}": 100 + j for j in range(12)} | {f"b{j}": j for j in range(12)} | {"built": 1}
        assert await contents(writer) == expected
        assert await contents(world.start("newcomer")) == expected

    for seed in range(3):
        run(lambda: play(seed))  # noqa: B023  run at once


# ---------------------------------------------------------------- beside a drop


async def _drop(process: Process) -> None:
    await process.indexes.drop(PARAMS.name)


async def _drop_suspended(process: Process) -> None:
    await process.indexes.suspend(PARAMS.name)
    await process.indexes.drop(PARAMS.name)


async def _end(process: Process) -> None:
    await lives.end(process.store, process.runtime, PARAMS.name)


async def _rebuild(process: Process) -> None:
    await building.rebuild(process.indexes, OTHER)


async def _publish(process: Process) -> None:
    await published(process, UUID(int=7, version=4), {"built": 1})


@pytest.mark.parametrize("act", [_rebuild, _publish])
@pytest.mark.parametrize("drop", [_drop, _drop_suspended, _end])
def test_a_record_that_lands_in_the_middle_of_a_drop_brings_nothing_back(act: Act, drop: Act) -> None:
    """What replaces a life goes on with all it held: whoever drops the index means that too."""

    async def play() -> None:
        world = World(3, SETTINGS)
        builder, dropper = await begun(world)
        await put(dropper, {"late": 1})
        hold = world.hold(builder, "create", RECORD_ONE)
        builder.run(act(builder))
        await hold.reached.wait()
        data = builder.creating[names.incarnation_key(PARAMS.name, 1)]
        builder.crash()
        ends = world.hold(dropper, "create", RECORD_ONE)
        dropping = dropper.run(drop(dropper))
        await ends.reached.wait()  # every log has ended
        await world.bucket.create(names.incarnation_key(PARAMS.name, 1), data)
        ends.release()
        await dropping
        for process in (dropper, world.start("newcomer")):
            assert await process.indexes.names() == []
            with pytest.raises(NotFound):
                await process.indexes.fresh(PARAMS.name)
        await asyncio.sleep(5)
        left = [info.key for info in await world.bucket.list(names.index_prefix(PARAMS.name))]
        assert not [key for key in left if "/snap/" in key or "/pins/" in key]
        await dropper.indexes.create(PARAMS)
        await put(dropper, {"new": 1})
        assert await contents(world.start("last")) == {"new": 1}

    run(play)


def test_a_life_that_ends_while_it_is_loaded_is_followed_to_the_next() -> None:
    """Two replacements in a row, while one process still takes over for the first of them."""

    async def play(seed: int) -> None:
        world = World(seed, SETTINGS)
        builder, writer = await begun(world)
        first = world.start("first")
        await building.rebuild(builder.indexes, OTHER, serve=False)
        await put(writer, {"late": 1})
        hold = world.hold(first, "create", "/log/")
        opening = first.run(first.indexes.open(PARAMS.name))
        await hold.reached.wait()
        await building.rebuild(builder.indexes, replace(OTHER, m=9))
        await put(builder, {"later": 2})
        hold.release()
        assert (await opening).record.number == 2
        assert await contents(first) == {f"x{j}": j for j in range(6)} | {"late": 1, "later": 2}

    for seed in range(6):
        run(lambda: play(seed))  # noqa: B023  run at once


# ---------------------------------------------------------------- two who take over at once


class _AnyCursor:
    """A cursor that is where any other is."""

    def __ne__(self, other: object) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


def puts_whatever_was_put_before(patch: pytest.MonkeyPatch) -> None:
    carry = Writer.carry

    async def unchecked(self: Writer, requests: tuple[EncodedRequest, ...], before: object) -> bool:
        return await carry(self, requests, _AnyCursor())  # type: ignore[arg-type]

    patch.setattr(Writer, "carry", unchecked)


async def who_is_late_puts_nothing_twice(seed: int, *, dies: bool) -> None:
    """Two processes take over the same entries; the one that stalls goes on when the other is served and written to.

    Its next entry would set the cursor back, and put old requests over newer ones where the window has forgotten them.
    """
    world = World(seed, replace(SETTINGS, group_bytes_max=1))
    builder, writer = await begun(world, 1)
    record = await building.rebuild(builder.indexes, OTHER, serve=False)
    assert record.uuid is not None
    log = names.log_prefix(PARAMS.name, record.uuid, 0)
    for j in range(5):
        await put(writer, {"x0": 10 + j}, key=f"late-{j}")
    slow, served = world.start("slow"), world.start("served")
    hold = world.hold(slow, "create", log)
    opening = slow.run(slow.indexes.open(PARAMS.name))
    await hold.reached.wait()
    await put(served, {"x0": 20})
    for j in range(WINDOW_KEYS):
        await put(served, {"x1": j})
    for _ in range(3):  # its slot is taken, then it fences, and would put an entry of its own, and the next
        following = await next_call(hold, slow, log)
        await asyncio.wait([opening, reached(following)], return_when=asyncio.FIRST_COMPLETED)
        hold = following
    if dies:
        slow.crash()
    hold.release()
    await asyncio.wait([opening])
    if await contents(served) != {f"x{j}": j for j in range(6)} | {"x0": 20, "x1": WINDOW_KEYS - 1}:
        raise Lost(f"a request went over twice: {await contents(served)}")
    await put(served, {"after": 1})


WINDOW_KEYS = 6


async def next_call(hold: Hold, process: Process, key_part: str) -> Hold:
    """Let a held call take effect, and hold the one after it."""
    hold.release()
    for _ in range(3):
        await asyncio.sleep(0)
    return process.world.hold(process, "create", key_part)


def reached(hold: Hold) -> "asyncio.Task[bool]":
    return asyncio.get_running_loop().create_task(hold.reached.wait())


@pytest.fixture
def _short_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window that forgets after few requests, as the real one does after many."""
    monkeypatch.setattr(IdempotencyWindow.__init__, "__defaults__", (WINDOW_KEYS,))
    monkeypatch.setattr(IdempotencyWindow.from_bytes.__func__, "__defaults__", (WINDOW_KEYS,))  # type: ignore[attr-defined]


@pytest.mark.usefixtures("_short_window")
@pytest.mark.parametrize("dies", [False, True])
def test_who_is_late_puts_nothing_twice(dies: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(4):
        run(lambda: who_is_late_puts_nothing_twice(seed, dies=dies))  # noqa: B023  run at once
    puts_whatever_was_put_before(monkeypatch)
    with pytest.raises((Lost, Unavailable)):
        run(lambda: who_is_late_puts_nothing_twice(1, dies=dies))


# ---------------------------------------------------------------- what is left of what failed


async def _vacancy(process: Process) -> None:
    await process.indexes.vacancy(PARAMS.name, 2, replaces=True)


@pytest.mark.parametrize("act", [_rebuild, _vacancy])
def test_what_fails_before_there_is_content_leaves_no_pin(act: Act) -> None:
    """A pin that stays keeps every log entry of the life from being collected."""

    async def play(call: int) -> bool:
        world = World(call, SETTINGS)
        builder, _ = await begun(world)
        await present(builder)
        failing = False
        calls = 0
        original = world.fault

        def struck(process: str, operation: str, key: str) -> Fault:
            nonlocal calls, failing
            if process == builder.name:
                calls += 1
                failing = failing or calls == call
            return (
                Fault.LOST_ANSWER if failing and operation != "delete" else original(process, operation, key)
            )

        world.fault = struck  # type: ignore[method-assign]
        work = builder.run(act(builder))
        await asyncio.wait([work])
        failing, call = False, -1
        await asyncio.sleep(60)
        if work.exception() is not None:
            keys = [info.key for info in await world.bucket.list(names.index_prefix(PARAMS.name))]
            assert [key for key in keys if "/pins/" in key] == []
        return calls > 0

    for call in range(1, 16):
        run(lambda: play(call))  # noqa: B023  run at once


def test_what_was_swept_is_not_looked_at_again() -> None:
    async def play() -> None:
        world = World(3, SETTINGS)
        builder, writer = await begun(world, 1)
        life = UUID(int=5, version=4)
        hold = world.hold(builder, "create", "/fate/")
        builder.run(published(builder, life, {"built": 1}))
        await hold.reached.wait()
        builder.crash()
        for expected in ([life], [], []):
            store, runtime = writer.store, writer.runtime
            assert await beginning.sweep_unnamed(store, runtime, PARAMS.name, 0) == expected
            left = [
                info.key
                for info in await world.bucket.list(names.life_prefix(PARAMS.name, life))
                if "/fate/" not in info.key
            ]
            assert left == []
        old = (await present(writer)).record.uuid
        assert old is not None
        await beginning.pin(
            world.bucket, PARAMS.name, old, life
        )  # a PUT of the dead builder's that lands late
        assert await beginning.sweep_unnamed(writer.store, writer.runtime, PARAMS.name, 0) == [life]
        assert await world.bucket.list(names.pin_prefix(PARAMS.name, old)) == []

    run(play)


def test_a_rebuild_leaves_a_new_owner_in_place() -> None:
    async def play() -> None:
        world = World(3, SETTINGS)
        builder, other = await begun(world, 1)
        hold = world.hold(builder, "put", "/snap/")
        work = builder.run(_rebuild(builder))
        await hold.reached.wait()
        await other.indexes.take_over(PARAMS.name, "someone")
        hold.release()
        await work
        collection = await present(other)
        assert (collection.record.owner, collection.record.number) == ("someone", 2)

    run(play)


def test_one_bad_read_of_the_old_log_loses_nothing_of_what_goes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other content may replace a damaged life, but a log is called damaged only when it stays so."""
    bad: set[tuple[UUID, int]] = set()

    class OnceBad(ShardLog):
        async def read(self, seq: int) -> tuple[Entry, int]:
            if (self.incarnation, seq) not in bad:
                bad.add((self.incarnation, seq))
                raise Corrupt("a bad read")
            return await super().read(seq)

    monkeypatch.setattr(carrying, "ShardLog", OnceBad)

    async def play() -> None:
        world = World(3, SETTINGS)
        builder, writer = await begun(world, 1)
        start = await builder.indexes.vacancy(PARAMS.name, 1, replaces=True)
        await put(writer, {"late": 1})
        await building.build(builder.indexes, PARAMS, 1, rows({"built": 1}), replaces=True, start=start)
        assert bad
        assert await contents(world.start("newcomer")) == {"built": 1, "late": 1}

    run(play)


# ---------------------------------------------------------------- eventual reads over HTTP


async def _asked(process: Process, verb: str, body: bytes, *headers: tuple[bytes, bytes]) -> Response:
    """What a request over HTTP is answered."""

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    api = VectorsApi(process.indexes, process.runtime, 1 << 20)
    scope = {"type": "http", "method": "GET" if verb == "get" else "POST", "query_string": b""}
    if verb == "get":
        scope["query_string"] = body
    request = Request(scope, receive, dict(headers), "simulated", BodyBudget(1 << 20))
    request.params = {"name": PARAMS.name}
    answer = await getattr(api, verb)(request)
    assert isinstance(answer, Response)
    return answer


def test_an_eventual_read_does_not_wait_for_the_next_life_and_a_strong_one_does() -> None:
    async def play() -> None:
        world = World(2, SETTINGS)
        builder, writer = await begun(world, 1)
        hold = world.hold(writer, "get", "/snap/")
        await building.rebuild(builder.indexes, OTHER)
        with pytest.raises(NotFound):
            await (await writer.indexes.open(PARAMS.name)).refresh(Consistency.STRONG)
        position = ((b"lakehouse-min-position", b"anything"),)
        for verb, body in (
            ("search", b'{"vector":[1,1],"k":1,"consistency":"%s"}'),
            ("search_batch", b'{"vectors":[[1,1]],"k":1,"consistency":"%s"}'),
            ("count", b'{"consistency":"%s"}'),
            ("scroll", b'{"consistency":"%s"}'),
            ("get", b"consistency=%s"),
        ):
            began = writer.runtime.monotonic()
            assert (await _asked(writer, verb, body % b"eventual")).status == 200
            assert writer.runtime.monotonic() - began < 0.1
            for consistency, headers in ((b"strong", ()), (b"eventual", position)):
                with pytest.raises(Unavailable):
                    await _asked(writer, verb, body % consistency, *headers)
        hold.release()
        assert (await _asked(writer, "count", b"{}")).status == 200

    run(play)
