"""Admission, cancelling, kept results, and processes that die."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from lakehouse.core.errors import Busy, Corrupt, LakehouseError, NotFound, StorageFull, Unavailable
from lakehouse.sql import service as service_module
from lakehouse.sql.execution import Execution, Query, State
from lakehouse.sql.workers import WorkerPool
from sql_lake import Lake, products

FOREVER = "SELECT sum(i) FROM range(100000000000000) t(i)"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Lake]:
    """A lake of its own: one worker, a queue of two."""
    lake = Lake(tmp_path, sql_workers=1, sql_queue_max=2)
    yield lake
    lake.close()


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def begin(lake: Lake, sql: str, *, keep: bool = False, timeout_s: float = 60.0) -> Execution:
    return lake.call(lake.service.begin(Query(sql, timeout_s=timeout_s), keep=keep))


def test_a_cancelled_query_is_gone_at_once(lake: Lake) -> None:
    execution = begin(lake, FOREVER)
    until(
        lambda: execution.state is State.RUNNING and bool(lake.workers) and lake.workers[-1].gone_at is None
    )
    lake.call(lake.service.cancel(execution.id))
    assert execution.state is State.CANCELLED
    until(lambda: lake.workers[-1].gone_at is not None)
    with pytest.raises(NotFound):
        lake.service.get(execution.id)


def test_a_worker_that_dies_while_its_walls_are_tried_does_not_turn_sql_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = WorkerPool.probe
    lost: list[int] = []

    async def first_killed(pool: WorkerPool) -> dict[str, str]:
        if not lost:
            async with pool.worker() as worker:
                lost.append(worker.pid)
                os.kill(worker.pid, signal.SIGKILL)
                await worker.receive()
        return await probe(pool)

    monkeypatch.setattr(WorkerPool, "probe", first_killed)
    lake = Lake(tmp_path)
    try:
        assert lake.call(lake.service.begin(Query("SELECT 1"))).state is not State.FAILED
        assert lost
        assert lake.service.checks()["sql"] == "ok"
    finally:
        lake.close()


def test_a_query_cancelled_before_its_first_step_ends_too(lake: Lake) -> None:
    async def at_once() -> Execution:
        execution = await lake.service.begin(Query(FOREVER))
        execution.cancel()
        await execution.done.wait()
        return execution

    assert lake.call(at_once()).state is State.CANCELLED


def test_a_reader_that_stops_early_ends_its_query(lake: Lake) -> None:
    async def first_chunk() -> Execution:
        execution = await lake.service.run(Query("SELECT * FROM range(1000000000)"))
        chunks = execution.chunks()
        await anext(chunks)
        await chunks.aclose()  # type: ignore[attr-defined]
        await execution.done.wait()
        return execution

    assert lake.call(first_chunk()).state is State.CANCELLED


def test_what_the_queue_cannot_hold_is_busy(small: Lake) -> None:
    running = begin(small, FOREVER)
    until(lambda: running.state is State.RUNNING)
    waiting = [begin(small, "SELECT 1", keep=True) for _ in range(2)]
    with pytest.raises(Busy, match="waiting=`2`"):
        begin(small, "SELECT 1")
    assert [one.state for one in waiting] == [State.QUEUED] * 2
    small.call(small.service.cancel(running.id))
    for one in waiting:
        small.call(one.done.wait())
        assert one.state is State.SUCCEEDED
    assert small.rows("SELECT 1") == [[1]]


def test_queries_that_come_all_at_once_are_no_more_than_the_queue_holds(small: Lake) -> None:
    async def burst() -> list[object]:
        begins = [small.service.begin(Query("SELECT 1")) for _ in range(20)]
        return list(await asyncio.gather(*begins, return_exceptions=True))

    outcomes = small.call(burst())
    admitted = [one for one in outcomes if isinstance(one, Execution)]
    assert len(admitted) == 3  # one worker, a queue of two
    assert sum(isinstance(one, Busy) for one in outcomes) == 17
    for one in admitted:
        small.call(one.done.wait())
    assert small.rows("SELECT 1") == [[1]]


def test_a_waiting_query_can_be_cancelled(small: Lake) -> None:
    running = begin(small, FOREVER)
    until(lambda: running.state is State.RUNNING)
    waiting = begin(small, "SELECT 1")
    small.call(small.service.cancel(waiting.id))
    assert waiting.state is State.CANCELLED
    small.call(small.service.cancel(running.id))
    assert small.service.count(State.QUEUED) == 0
    assert small.rows("SELECT 1") == [[1]]


def test_a_kept_result_can_be_fetched_until_it_is_forgotten(small: Lake) -> None:
    execution = begin(small, "SELECT * FROM range(100000)", keep=True)
    small.call(execution.done.wait())

    async def whole() -> bytes:
        return b"".join([chunk async for chunk in small.service.kept(execution)])

    data = small.call(whole())
    assert len(data) == execution.bytes
    assert data.endswith(b'"row_count":100000,"truncated":false}')
    assert small.call(whole()) == data
    assert execution.keep is not None
    small.call(small.service.cancel(execution.id))
    assert not execution.keep.exists()


def test_a_result_that_finds_the_disk_full_says_so_and_leaves_nothing(small: Lake) -> None:
    async def begun() -> Execution:
        execution = await small.service.begin(Query("SELECT * FROM range(100000)"), keep=True)
        assert execution.keep is not None
        execution.keep.symlink_to("/dev/full")
        return execution

    execution = small.call(begun())
    small.call(execution.done.wait())
    assert isinstance(execution.error, StorageFull)
    kept = execution.keep
    until(lambda: kept is not None and not kept.is_symlink())
    assert small.rows("SELECT 1") == [[1]]


def test_of_many_who_cancel_one_query_all_are_served(small: Lake) -> None:
    execution = begin(small, "SELECT sum(range) FROM range(100000000000)", keep=True)

    async def all_at_once() -> list[object]:
        cancels = [small.service.cancel(execution.id) for _ in range(5)]
        return list(await asyncio.gather(*cancels, return_exceptions=True))

    assert all(end is None or isinstance(end, NotFound) for end in small.call(all_at_once()))


def test_a_half_result_of_a_cancelled_query_goes(small: Lake) -> None:
    execution = begin(small, "SELECT i, repeat('x', 1000) FROM range(100000000) t(i)", keep=True)
    until(lambda: execution.bytes > 0)
    execution.cancel()
    small.call(execution.done.wait())
    until(lambda: execution.keep is not None and not execution.keep.exists())


def test_kept_results_are_bounded_in_number_and_age(small: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "KEPT_MAX", 2)
    ended = []
    for _ in range(4):
        execution = begin(small, "SELECT 1", keep=True)
        small.call(execution.done.wait())
        ended.append(execution)
    assert small.listed() == [ended[3].id, ended[2].id]
    until(lambda: sum(one.keep is not None and one.keep.exists() for one in ended) == 2)
    ended[3].began -= small.settings.sql_result_s + 1
    assert small.listed() == [ended[2].id]


def test_kept_results_are_bounded_in_bytes(small: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "KEPT_BYTES_MAX", 1_000)
    ended = []
    for _ in range(2):
        execution = begin(small, "SELECT * FROM range(150)", keep=True)
        small.call(execution.done.wait())
        ended.append(execution)
    assert small.listed() == [ended[1].id]


def test_a_zygote_that_dies_takes_its_workers_along_and_comes_back(small: Lake) -> None:
    running = begin(small, FOREVER)
    until(lambda: running.state is State.RUNNING and bool(small.workers))
    assert small.service.pool.zygote_pid is not None
    os.kill(small.service.pool.zygote_pid, signal.SIGKILL)
    small.call(running.done.wait())
    assert running.error is not None
    until(lambda: small.workers[-1].gone_at is not None)
    assert small.rows("SELECT 42") == [[42]]


def test_a_worker_that_is_killed_fails_its_query_alone(small: Lake) -> None:
    running = begin(small, FOREVER)
    until(lambda: running.state is State.RUNNING and bool(small.workers))
    os.kill(small.workers[-1].pid, signal.SIGKILL)
    small.call(running.done.wait())
    assert "ended its worker" in str(running.error)
    assert small.rows("SELECT 42") == [[42]]


def test_closing_ends_every_process(tmp_path: Path) -> None:
    lake = Lake(tmp_path, sql_workers=2)
    running = [begin(lake, FOREVER) for _ in range(2)]
    until(lambda: all(one.state is State.RUNNING for one in running) and len(lake.workers) == 2)
    zygote = lake.service.pool.zygote_pid
    lake.close()
    assert all(one.state is State.CANCELLED for one in running)
    until(lambda: all(seen.gone_at is not None for seen in lake.workers))
    assert not Path(f"/proc/{zygote}").exists()


def test_without_an_essential_wall_sql_is_off(
    tmp_path: Path, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "ESSENTIAL", frozenset(("memory", "a wall that fell")))
    service = service_module.SqlService(lake.catalog, lake.store, lake.runtime, lake.settings, tmp_path, None)

    async def started() -> None:
        await service.start()
        await service.started()

    try:
        with pytest.raises(Unavailable, match="a wall that fell"):
            lake.call(started())
        assert service.checks()["sql"].startswith("off: ")

        async def asked() -> None:
            await service.run(Query("SELECT 1"))

        with pytest.raises(Unavailable, match="SQL is off"):
            lake.call(asked())
    finally:
        lake.call(service.close())


# --- the cache of files


def test_a_file_is_fetched_once_for_all_who_want_it(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    lake.dataset("fetched", products(5))
    fetched = []
    download = lake.store.download

    async def counted(key: str, path: "os.PathLike[str]") -> object:
        fetched.append(key)
        await asyncio.sleep(0.05)
        return await download(key, path)

    monkeypatch.setattr(lake.store, "download", counted)

    async def at_once() -> list[Execution]:
        return list(
            await asyncio.gather(*(lake.service.run(Query("SELECT count(*) FROM fetched")) for _ in range(4)))
        )

    for execution in lake.call(at_once()):
        lake.call(execution.done.wait())
        assert execution.state is State.SUCCEEDED
    assert len(fetched) == 1


def test_a_failed_fetch_is_tried_again_by_the_next_query(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    lake.dataset("refetched", products(5))
    with monkeypatch.context() as patched:

        async def away(key: str, path: "os.PathLike[str]") -> object:
            raise Unavailable("the store is away")

        patched.setattr(lake.store, "download", away)
        with pytest.raises(Unavailable, match="away"):
            lake.rows("SELECT count(*) FROM refetched")
    assert lake.rows("SELECT count(*) FROM refetched") == [[5]]


def test_files_leave_when_the_cache_is_full_and_never_while_read(tmp_path: Path) -> None:
    lake = Lake(tmp_path, cache_bytes_max=1)
    try:
        lake.dataset("one", products(5))
        lake.dataset("two", products(5))
        assert lake.rows("SELECT count(*) FROM one, two") == [[25]]
        files = tmp_path / "scratch" / "sql" / "files"
        until(lambda: not any(len(path.name) > 40 for path in files.iterdir()))  # examples stay
        assert lake.service.cache.size_bytes == 0
        assert lake.rows("SELECT count(*) FROM one") == [[5]]
    finally:
        lake.close()


def test_room_is_made_before_a_file_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = Lake(tmp_path, cache_bytes_max=5_000)
    try:
        lake.dataset("one", products(5))
        lake.dataset("two", products(6))
        assert lake.rows("SELECT count(*) FROM one") == [[5]]
        files = tmp_path / "scratch" / "sql" / "files"
        (kept,) = (path for path in files.iterdir() if len(path.name) > 40)
        lake.service.cache._bytes_max = lake.service.cache.size_bytes + 1
        there: list[bool] = []
        download = lake.store.download

        async def watched(key: str, path: "os.PathLike[str]") -> object:
            there.append(kept.exists())
            return await download(key, path)

        monkeypatch.setattr(lake.store, "download", watched)
        assert lake.rows("SELECT count(*) FROM two") == [[6]]
        assert there == [False]
    finally:
        lake.close()


def test_queries_that_end_together_clear_the_cache_together(tmp_path: Path) -> None:
    lake = Lake(tmp_path, cache_bytes_max=1)
    try:
        for name in ("one", "two", "three"):
            lake.dataset(name, products(5))

        async def together() -> None:
            cache = lake.service.cache
            objects: list[Mapping[str, Any]] = []
            for name in ("one", "two", "three"):
                objects += (await lake.catalog.manifest(name)).objects
            async with cache.files(objects):
                pass
            held = cache.files(objects)
            await held.__aenter__()
            await asyncio.gather(held.__aexit__(None, None, None), cache._shrink(), cache._shrink())
            assert cache.size_bytes == 0

        lake.call(together())
    finally:
        lake.close()


def test_an_object_of_another_size_than_its_manifest_says_is_corrupt(lake: Lake) -> None:
    lake.dataset("resized", products(5))
    key = lake.call(lake.catalog.manifest("resized")).objects[0]["key"]
    lake.call(lake.store.put(key, b"PAR1"))
    with pytest.raises(LakehouseError) as caught:
        lake.rows("SELECT * FROM resized")
    assert isinstance(caught.value, Corrupt)
