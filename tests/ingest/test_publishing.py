"""Nothing is visible before it is whole, and of two that publish at once neither loses the other's rows."""

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ingest.lake import Lake
from lakehouse.catalog import Catalog
from lakehouse.core import manifest
from lakehouse.core.errors import Conflict, Invalid, MemoryExceeded, NotFound, Unavailable, WorkerDied
from lakehouse.core.schema import SchemaPolicy
from lakehouse.ingest import Mode, Step
from lakehouse.ingest.job import Answer, Convert, Task
from lakehouse.ingest.process import InlineConverting, ProcessConverting, Told
from lakehouse.ingest.reading import Limits
from lakehouse.runtime import SystemRuntime


class Meeting(InlineConverting):
    """Converts, then waits until the other one has converted, too."""

    def __init__(self, limits: Limits, runtime: SystemRuntime, barrier: asyncio.Barrier) -> None:
        super().__init__(limits, runtime)
        self._barrier = barrier
        self._has_met = False

    async def do(self, task: Task, told: Told) -> Answer:
        answer = await super().do(task, told)
        if isinstance(task, Convert) and not self._has_met:
            self._has_met = True
            await self._barrier.wait()
        return answer


async def both(lake: Lake, mode: Mode) -> list[object]:
    barrier = asyncio.Barrier(2)
    return await asyncio.gather(
        *(
            lake.ingest(
                lake.write(f"{name}.csv", f"id\n{name}\n"),
                mode=mode,
                converting=lambda limits: Meeting(limits, lake.runtime, barrier),
            )
            for name in "12"
        ),
        return_exceptions=True,
    )


async def test_of_two_appends_at_once_both_rows_are_there(lake: Lake) -> None:
    done = await both(lake, Mode.APPEND)
    assert not [one for one in done if isinstance(one, BaseException)]
    assert await lake.rows() == [(1,), (2,)]
    assert await lake.catalog.versions("d") == [1, 2]


async def test_of_two_replaces_at_once_one_conflicts_and_leaves_nothing(lake: Lake) -> None:
    done = await both(lake, Mode.REPLACE)
    assert sorted(type(one).__name__ for one in done) == ["Conflict", "IngestResult"]
    found = await lake.catalog.manifest("d")
    assert found.version == 1
    assert set(await lake.keys("_catalog/data/")) == set(found.object_keys)


class Killed(ProcessConverting):
    """Is killed as the first row is converted."""

    async def do(self, task: Task, told: Told) -> Answer:
        if isinstance(task, Convert):
            assert self.pid is not None
            os.kill(self.pid, signal.SIGKILL)
        return await super().do(task, told)


async def test_a_killed_worker_leaves_the_old_version_and_no_trace(lake: Lake) -> None:
    path = lake.write("a.csv", "id\n1\n")
    before = await lake.ingest(path)
    keys = await lake.keys()
    lake.write("a.csv", "id\n1\n2\n")
    with pytest.raises(Unavailable, match="killed by signal 9"):
        await lake.ingest(path, converting=Killed)
    assert await lake.keys() == keys
    assert await lake.catalog.manifest("d") == before.manifest
    assert list(lake.scratch.iterdir()) == []
    assert (await lake.ingest(path, converting=ProcessConverting)).published
    assert await lake.rows() == [(1,), (2,)]


async def test_a_cancelled_ingest_ends_its_worker(lake: Lake) -> None:
    started: list[ProcessConverting] = []

    def converting(limits: Limits) -> ProcessConverting:
        started.append(ProcessConverting(limits))
        return started[0]

    endless = "SELECT sum(a.range * b.range) AS s FROM source, range(100000000) a, range(100000000) b"
    path = lake.write("a.csv", "id\n1\n")
    task = asyncio.ensure_future(lake.ingest(path, transform=endless, converting=converting))
    while not lake.told or lake.told[-1].files < 1:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert started[0].pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(started[0].pid, 0)
    assert list(lake.scratch.iterdir()) == []
    assert await lake.keys() == []


async def test_an_ingest_over_its_deadline_is_ended(lake: Lake) -> None:
    from lakehouse import ingest, settings

    endless = "SELECT sum(a.range * b.range) AS s FROM source, range(100000000) a, range(100000000) b"
    spec = ingest.IngestSpec("d", (ingest.Source(lake.write("a.csv", "id\n1\n")),), endless)
    with pytest.raises(Unavailable, match="longer than it may"):
        await ingest.run(
            spec,
            lake.catalog,
            lake.store,
            lake.runtime,
            settings.load(),
            scratch=lake.scratch,
            deadline_s=1.0,
        )
    assert await lake.keys() == []


async def test_a_process_does_what_the_functions_do_and_tells_numbers(lake: Lake) -> None:
    rows = "".join(f"{n},name-{n}\n" for n in range(200_000))
    path = lake.write("a.csv", f"id,name\n{rows}")
    done = await lake.ingest(path, converting=ProcessConverting)
    assert done.manifest.row_count == 200_000
    last = lake.told[-1]
    assert last.step is Step.PUBLISHING
    assert last.bytes_read == last.bytes_total == Path(path).stat().st_size
    assert (last.rows, last.files, last.files_total) == (200_000, 1, 1)
    read = [each.bytes_read for each in lake.told]
    assert read == sorted(read)


async def test_a_source_that_changes_while_it_is_read_is_told(lake: Lake) -> None:
    path = lake.write("a.csv", "id\n1\n")

    class Touching(InlineConverting):
        async def do(self, task: Task, told: Told) -> Answer:
            answer = await super().do(task, told)
            lake.write("a.csv", "id\n1\n2\n")
            return answer

    with pytest.raises(Unavailable, match=r"changed while it was read.*a\.csv"):
        await lake.ingest(path, converting=lambda limits: Touching(limits, lake.runtime))
    assert await lake.keys() == []


class Later(SystemRuntime):
    """A clock that is ahead."""

    ahead = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead


async def test_orphans_are_collected_after_a_day_by_the_next_version(lake: Lake) -> None:
    orphan = manifest.data_key("d", manifest.attempt_name(lake.runtime.now(), "0" * 32), 0)
    rejects = manifest.rejects_key("d", manifest.attempt_name(lake.runtime.now(), "1" * 32))
    for key in (orphan, rejects, "_catalog/data/d/foreign"):
        await lake.store.put(key, b"x")
    await lake.ingest(lake.write("a.csv", "id\n1\n"))
    assert {orphan, rejects} <= set(await lake.keys())
    later = Later()
    later.ahead = timedelta(hours=25)
    lake.catalog = Catalog(lake.store, later)
    await lake.ingest(lake.write("a.csv", "id\n2\n"))
    left = set(await lake.keys("_catalog/data/")) | set(await lake.keys("_catalog/rejects/"))
    assert not left & {orphan, rejects}
    assert "_catalog/data/d/foreign" in left
    assert await lake.rows(version=1) == [(1,)]
    assert await lake.rows(version=2) == [(2,)]
    later.close()


async def test_retiring_deletes_versions_and_only_what_nobody_names(lake: Lake) -> None:
    lake.write("a.csv", "id\n0\n")
    for n in range(1, 5):
        lake.write("b.csv", "id\n" + f"{n}\n" * n)
        await lake.ingest(f"{lake.sources}/*.csv")
    assert await lake.catalog.retire("d", 1, frozenset({2})) == (1, 3)
    assert await lake.catalog.versions("d") == [2, 4]
    assert await lake.rows(version=2) == [(0,), (2,), (2,)]
    assert len(await lake.rows()) == 5
    assert len(await lake.keys("_catalog/data/")) == 3
    assert await lake.catalog.retire("d", 1, frozenset({2})) == ()
    with pytest.raises(NotFound):
        await lake.catalog.manifest("d", 1)


async def test_an_ingest_that_began_before_a_drop_cannot_publish_after_it(lake: Lake) -> None:
    lake.write("a.csv", "id\n1\n")
    await lake.ingest(f"{lake.sources}/*.csv")
    lake.write("b.csv", "id\n2\n")

    class Dropping(InlineConverting):
        async def do(self, task: Task, told: Told) -> Answer:
            if isinstance(task, Convert):
                await lake.catalog.drop("d")
            return await super().do(task, told)

    with pytest.raises(Conflict):
        await lake.ingest(f"{lake.sources}/*.csv", converting=lambda limits: Dropping(limits, lake.runtime))
    with pytest.raises(NotFound):
        await lake.catalog.manifest("d")
    again = await lake.ingest(f"{lake.sources}/*.csv", policy=SchemaPolicy.STRICT)
    assert (again.manifest.version, again.manifest.first_version) == (3, 3)
    assert await lake.catalog.versions("d") == [3]
    assert await lake.rows() == [(1,), (2,)]


TRANSFORM = (
    "WITH big AS (SELECT * FROM source WHERE price > 1) SELECT id, price * 2 AS twice FROM big -- done;"
)


async def test_a_transform_makes_one_result_of_all_sources(lake: Lake) -> None:
    lake.write("a.csv", "id,price\n1,1\n2,2\n")
    lake.write("b.csv", "id,price\n3,3\nx\n")
    done = await lake.ingest(f"{lake.sources}/*.csv", transform=TRANSFORM)
    assert lake.columns(done) == ["id BIGINT", "twice BIGINT"]
    assert await lake.rows() == [(2, 4), (3, 6)]
    assert done.rejects == 1
    assert not (await lake.ingest(f"{lake.sources}/*.csv", transform=TRANSFORM)).published
    lake.write("b.csv", "id,price\n3,4\n")
    await lake.ingest(f"{lake.sources}/*.csv", transform=TRANSFORM)
    assert await lake.rows() == [(2, 4), (3, 8)]
    other = await lake.ingest(
        f"{lake.sources}/*.csv", transform="SELECT max(price) AS most FROM source", policy=SchemaPolicy.ANY
    )
    assert other.published
    assert await lake.rows() == [(4,)]


async def test_a_transform_with_append_is_applied_file_by_file(lake: Lake) -> None:
    count = "SELECT count(*) AS n FROM source"
    for name, rows in (("a.csv", 2), ("b.csv", 3)):
        await lake.ingest(lake.write(name, "id\n" + "1\n" * rows), transform=count, mode=Mode.APPEND)
    assert await lake.rows() == [(2,), (3,)]
    await lake.ingest(lake.write("a.csv", "id\n" + "1\n" * 7), transform=count, mode=Mode.APPEND)
    assert await lake.rows() == [(3,), (7,)]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT current_setting('temp_directory') AS here FROM source",
        "SELECT * FROM duckdb_settings()",
        "SELECT name FROM (SELECT * FROM duckdb_settings() UNION ALL SELECT * FROM duckdb_settings())",
        "SELECT * FROM pg_catalog.pg_settings",
        "SELECT * FROM information_schema.tables",
        "SELECT (SELECT max(value) FROM duckdb_settings()) AS x FROM source",
        "SELECT getenv('PATH') AS x FROM source",
        "SELECT * FROM (SHOW ALL TABLES)",
        "WITH a AS (SELECT * FROM duckdb_extensions()) SELECT * FROM a",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM source; SELECT 1",
        "COPY source TO '/tmp/lakehouse-never.csv'",
        "CREATE TABLE x AS SELECT 1",
        "ATTACH '/tmp/x.db'",
        "SET enable_external_access = true",
        "PRAGMA database_list",
        "EXPLAIN ANALYZE SELECT 1",
        "SELECT * FROM nowhere",
        "SELECT * FROM source) TO '/tmp/never' (FORMAT csv); --",
        "SELEC 1",
        "",
        "SELECT getenv('HOME') AS home",
    ],
)
async def test_a_transform_that_is_not_one_select_over_its_source_is_refused(lake: Lake, sql: str) -> None:
    with pytest.raises(Invalid):
        await lake.ingest(lake.write("a.csv", "id\n1\n"), transform=sql)
    assert await lake.keys() == []


async def test_a_dry_run_reads_everything_and_writes_nothing(lake: Lake) -> None:
    path = lake.write("a.csv", "id,name\n1,a\n2\n")
    done = await lake.ingest(path, dry_run=True)
    assert (done.published, done.rejects, done.manifest.row_count) == (False, 1, 1)
    assert done.sample == ({"id": 1, "name": "a"},)
    assert await lake.keys() == []


async def test_names_that_share_letters_stay_apart(lake: Lake) -> None:
    for name in ("d", "d/e", "d%2Fe", "D"):
        await lake.ingest(lake.write("a.csv", f"name\n{name}x\n"), name=name)
    await lake.catalog.drop("d")
    assert [found.name for found in await lake.catalog.list()] == ["D", "d%2Fe", "d/e"]
    assert await lake.rows("d/e") == [("d/ex",)]


@pytest.mark.parametrize(
    "sql", ["SELECT id FROM source; -- done", ";SELECT id FROM source;;", "FROM source -- x"]
)
async def test_a_transform_may_end_in_a_semicolon_and_a_comment(lake: Lake, sql: str) -> None:
    await lake.ingest(lake.write("a.csv", "id\n1\n"), transform=sql)
    assert await lake.rows() == [(1,)]


async def test_a_source_that_crashes_the_worker_is_named_and_is_not_worth_trying_again(lake: Lake) -> None:
    deep = '{"a":' + "[" * 200_000 + "]" * 200_000 + "}\n"
    with pytest.raises(Invalid, match="deep"):
        await lake.ingest(lake.write("deep.ndjson", deep), converting=ProcessConverting)
    assert list(lake.scratch.iterdir()) == []


async def test_a_worker_that_is_killed_is_no_fault_of_the_source(lake: Lake) -> None:
    class Killed(ProcessConverting):
        async def do(self, task: Task, told: Told) -> Answer:
            answer = await super().do(task, told)
            assert self.pid is not None
            os.kill(self.pid, signal.SIGKILL)
            return answer

    with pytest.raises(WorkerDied, match="killed by signal 9"):
        await lake.ingest(lake.write("a.csv", "id\n1\n"), converting=Killed)
    assert await lake.keys() == []


async def test_too_little_memory_names_the_setting_that_gives_more(lake: Lake) -> None:
    def small(limits: Limits) -> InlineConverting:
        return InlineConverting(replace(limits, memory_bytes=8 << 20), lake.runtime)

    sql = "SELECT list(repeat('x', 1000) || i) AS n FROM source, range(100_000) t(i)"
    with pytest.raises(MemoryExceeded, match="raise ingest_memory_bytes_max"):
        await lake.ingest(lake.write("a.csv", "id\n1\n"), transform=sql, converting=small)


async def test_the_worker_cannot_take_more_memory_than_it_may(lake: Lake) -> None:
    sql = "SELECT length(repeat('x', 4000000000)) + count(*) AS n FROM source"
    with pytest.raises(Unavailable, match="memory"):
        await lake.ingest(lake.write("a.csv", "id\n1\n"), transform=sql, converting=ProcessConverting)


def test_the_workers_address_space_is_bounded() -> None:
    program = (
        "import resource; from lakehouse.ingest import worker; worker._bound_memory(1 << 29, 2); "
        "print(resource.getrlimit(resource.RLIMIT_AS)[0])"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert 3 << 29 < int(told.stdout) < 64 << 30
