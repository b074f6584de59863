"""A query takes no more time, memory or disk than it may, whatever it says.

Each attack runs with a deadline of about a second.  Asserted: how it ends, that its process is gone within a
second of the deadline, that its address space stayed under its limit, and that no file grew.
"""

import threading
import time
from pathlib import Path

import numpy as np
import orjson
import pytest

from lakehouse.sql.errors import QueryFailed
from lakehouse.sql.execution import Query
from lakehouse.sql.formats import Format
from lakehouse.sql.worker import REHEARSED_BYTES
from sql_lake import MEMORY_BYTES, Lake

TIMEOUT_S = 1.0
GONE_S = 1.0
"""After the deadline."""
SLACK_BYTES = 64 << 20
"""What a worker maps between its fork and its limit: two threads' stacks and some warm-up."""

NESTED_PARENTHESES = "SELECT " + "(" * 20_000 + "1" + ")" * 20_000
NESTED_SELECTS = "SELECT * FROM (" * 3_000 + "SELECT 1" + ")" * 3_000
NESTED_LISTS = "SELECT " + "[" * 5_000 + "]" * 5_000
LONG_SUM = "SELECT " + "+".join(["1"] * 100_000)
LONG_AND = "SELECT * FROM range(10) t(i) WHERE " + " AND ".join(f"i <> {j}" for j in range(20_000))
MANY_COLUMNS = "SELECT " + ", ".join(f"{j} AS c{j}" for j in range(50_000))
MANY_JOINS = "SELECT count(*) FROM " + ", ".join(f"range(100) t{j}" for j in range(60))
MANY_UNIONS = " UNION ALL ".join(["SELECT 1"] * 5_000)
MANY_CTES = (
    "WITH c0 AS (SELECT 1 AS x), "
    + ", ".join(f"c{j} AS (SELECT a.x FROM c{j - 1} a, c{j - 1} b)" for j in range(1, 40))
    + " SELECT * FROM c39"
)
DOUBLING = (
    "WITH c0 AS MATERIALIZED (SELECT 'x' AS s), "
    + ", ".join(f"c{j} AS MATERIALIZED (SELECT s || s AS s FROM c{j - 1})" for j in range(1, 45))
    + " SELECT length(s) FROM c44"
)
ATTACKS = {
    "cross join": "SELECT count(*) FROM range(1000000) a, range(1000000) b, range(1000) c WHERE a.range < b.range",
    "self join": "SELECT count(*) FROM products a, products b, products c, products d, products e WHERE a.id <> e.id",
    "recursion without end": "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n FROM t) SELECT count(*) FROM t",
    "recursion that grows": "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t, range(10)) FROM t",
    "range without end": "SELECT sum(i) FROM range(1000000000000) t(i)",
    "generate_series of timestamps": "SELECT count(*) FROM generate_series(TIMESTAMP '0001-01-01', "
    "TIMESTAMP '9999-01-01', INTERVAL 1 MICROSECOND)",
    "unnest of a huge series": "SELECT unnest(generate_series(1, 10000000000))",
    "huge list": "SELECT list(i) FROM range(1000000000) t(i)",
    "list of lists": "SELECT list(l) FROM (SELECT range(1000000) AS l FROM range(100000))",
    "huge string": "SELECT repeat('x', 10000000000)",
    "huge strings": "SELECT repeat('x', 100000000) || i FROM range(1000) t(i)",
    "doubling string": DOUBLING,
    "lpad": "SELECT lpad('x', 2000000000, 'y')",
    "string_agg": "SELECT length(string_agg(repeat('x', 1000000), '')) FROM range(100000)",
    "sort of much": "SELECT i FROM range(1000000000) t(i) ORDER BY hash(i) DESC",
    "hash aggregate": "SELECT i, count(*) FROM range(1000000000) t(i) GROUP BY i",
    "distinct": "SELECT count(DISTINCT hash(i)) FROM range(1000000000) t(i)",
    "window": "SELECT max(s) FROM (SELECT sum(i) OVER (ORDER BY hash(i)) AS s FROM range(1000000000) t(i))",
    "median": "SELECT median(hash(i)) FROM range(1000000000) t(i)",
    "histogram": "SELECT histogram(i) FROM range(1000000000) t(i)",
    "hash join": "SELECT count(*) FROM range(100000000) a JOIN range(100000000) b ON hash(a.range) = hash(b.range)",
    "regular expression": "SELECT count(*) FROM range(1000000) t(i) "
    "WHERE regexp_matches(repeat('a', 30000), '(a|aa|aaa)*b(a*)*c')",
    "like": "SELECT count(*) FROM range(100000) t(i) WHERE repeat('a', 100000) LIKE '%a%a%a%a%a%a%a%a%b'",
    "edit distance": "SELECT levenshtein(repeat('a', 1000000), repeat('b', 1000000))",
    "factorial": "SELECT sum(1000::HUGEINT ** 9 % (i + 1)) FROM range(100000000000) t(i)",
    "list sort": "SELECT list_sort(list_transform(range(100000000), lambda x: hash(x)))",
    "lambda in lambda": "SELECT list_sum(list_transform(range(100000), "
    "lambda x: list_sum(list_transform(range(100000), lambda y: x * y))))",
    "json": "SELECT to_json(list(i))::VARCHAR FROM range(100000000) t(i)",
    "pivot": "SELECT * FROM (PIVOT (SELECT i, i AS j FROM range(100000) t(i)) ON i IN (1, 2) USING list(j))",
    "huge result": "SELECT i, repeat('x', 1000) FROM range(1000000000) t(i)",
    "many columns": MANY_COLUMNS,
    "many joins": MANY_JOINS,
    "many unions": MANY_UNIONS,
    "many tables": MANY_CTES,
    "nested parentheses": NESTED_PARENTHESES,
    "nested selects": NESTED_SELECTS,
    "nested lists": NESTED_LISTS,
    "long sum": LONG_SUM,
    "long and": LONG_AND,
    "half a megabyte of text": "SELECT '" + "x" * 500_000 + "'",
    "text over the limit": "SELECT '" + "x" * 2_000_000 + "'",
    "slow lateral": "SELECT count(*) FROM range(100000000) t(i), vector_search('items', [i, 1, 2], k := 1000)",
    "searches in a recursion": "WITH RECURSIVE t(n) AS (SELECT 1.0::DOUBLE UNION ALL SELECT v.distance + n FROM t, "
    "vector_search('items', [t.n, 1, 2], k := 3) v) SELECT count(*) FROM t",
    "summarize": "SUMMARIZE SELECT i, repeat('x', i % 1000) FROM range(100000000) t(i)",
    "sample": "SELECT * FROM range(10000000000) USING SAMPLE reservoir(100000000 ROWS)",
    "asof": "SELECT count(*) FROM range(10000000) a ASOF JOIN range(100000000) b ON a.range >= b.range",
    "time zones": "SELECT count(DISTINCT strftime(to_timestamp(i), '%A %B %c')) FROM range(100000000) t(i)",
}


def outcome(lake: Lake, sql: str, **options: object) -> str:
    """How a query ended: `answered`, or the kind of its failure."""
    try:
        lake.execute(sql, **{"timeout_s": TIMEOUT_S, **options})
    except QueryFailed as error:
        return error.kind
    return "answered"


def check_worker(lake: Lake, before: int, began: float, timeout_s: float) -> None:
    """The process of the last query is gone in time and stayed within its limits."""
    if len(lake.workers) == before:
        return  # refused before any process saw it
    seen = lake.workers[-1]
    give_up = time.monotonic() + 10
    while seen.gone_at is None and time.monotonic() < give_up:
        time.sleep(0.01)
    assert seen.gone_at is not None
    assert seen.gone_at - began <= timeout_s + GONE_S
    assert seen.peak <= seen.size_at_start + MEMORY_BYTES + REHEARSED_BYTES + SLACK_BYTES
    limit = seen.limits.get("Max address space", "unlimited")
    assert limit == "unlimited" or seen.peak <= int(
        limit
    )  # unlimited: ended before it was ever sampled again


@pytest.mark.parametrize("sql", ATTACKS.values(), ids=ATTACKS.keys())
def test_an_attack_on_resources_ends_alone(lake: Lake, sql: str) -> None:
    before, began = len(lake.workers), time.monotonic()
    ended = outcome(lake, sql, row_limit=1_000, byte_limit=1 << 20)
    assert ended in ("answered", "invalid", "memory", "timeout", "crashed")
    check_worker(lake, before, began, TIMEOUT_S)
    assert lake.rows("SELECT 1") == [[1]]


@pytest.mark.parametrize("form", Format)
def test_a_huge_result_is_cut_off_in_every_format(lake: Lake, form: Format) -> None:
    sql = "SELECT i, repeat('x', 100) AS x FROM range(1000000000) t(i)"
    execution, data = lake.execute(sql, format=form, timeout_s=10.0, byte_limit=1 << 20)
    assert execution.tail is not None
    assert execution.tail.truncated
    assert len(data) <= (1 << 20) + 1_000


def test_time_and_memory_are_told_apart(lake: Lake) -> None:
    assert outcome(lake, ATTACKS["range without end"]) == "timeout"
    assert outcome(lake, ATTACKS["huge list"], timeout_s=10.0) == "memory"
    assert outcome(lake, ATTACKS["string_agg"], timeout_s=10.0) == "memory"


@pytest.mark.parametrize(
    "parameters",
    [
        b"[" * 100_000 + b"]" * 100_000,
        b"[" + b"1," * 1_000_000 + b"1]",
        orjson.dumps(["x" * 10_000_000]),
        orjson.dumps({f"p{j}": j for j in range(100_000)}),
        orjson.dumps([[1.0] * 1_000_000]),
        b"[1e999]",
        b"[123456789012345678901234567890123456789012345678901234567890]",
        b'["\\ud800"]',
        b"7",
        b'"x"',
        b"[1, 2",
    ],
    ids=range(11),
)
def test_huge_and_odd_parameters_end_alone(lake: Lake, parameters: bytes) -> None:
    before, began = len(lake.workers), time.monotonic()
    assert outcome(lake, "SELECT $1", parameters=parameters) in ("answered", "invalid", "memory", "timeout")
    check_worker(lake, before, began, TIMEOUT_S)


def test_a_client_that_does_not_read_holds_its_worker_no_longer_than_the_deadline(lake: Lake) -> None:
    async def begun() -> object:
        return await lake.service.run(Query("SELECT * FROM range(100000000)", timeout_s=TIMEOUT_S))

    before, began = len(lake.workers), time.monotonic()
    lake.call(begun())
    check_worker(lake, before, began, TIMEOUT_S)


def test_nothing_is_left_on_disk_or_running_by_all_of_this(lake: Lake) -> None:
    files = [path.name for path in (lake.home / "scratch").rglob("*") if path.is_file()]
    assert all(name.endswith(".parquet") for name in files)
    assert not any((lake.home / "scratch" / "sql" / "results").iterdir())
    assert all(seen.gone_at is not None for seen in lake.workers[:-1])


def test_searches_go_on_beside_attacks(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    """Shown, not judged: how long a search beside attacks takes depends on the machine."""
    quiet, loud = _search_seconds(lake, 300), []
    attacks = [ATTACKS[name] for name in ("cross join", "hash aggregate", "huge list", "regular expression")]
    threads = [threading.Thread(target=outcome, args=(lake, sql)) for sql in attacks]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        loud += _search_seconds(lake, 50)
    with capsys.disabled():
        shown = ", ".join(
            f"{name}: p50 {np.percentile(seconds, 50) * 1e3:.2f} ms, p99 {np.percentile(seconds, 99) * 1e3:.2f} ms"
            for name, seconds in (("alone", quiet), ("beside attacks", loud))
        )
        print(f"\nsearch {shown} ({len(loud)} searches)")


def _search_seconds(lake: Lake, count: int) -> list[float]:
    async def searched() -> list[float]:
        collection = await lake.indexes.open("items")
        seconds = []
        for _ in range(count):
            began = time.perf_counter()
            collection.search_now(np.array([[1.0, 2.0, 3.0]], np.float32), 10)
            seconds.append(time.perf_counter() - began)
        return seconds

    return lake.call(searched())


def test_a_kernel_without_our_parent_ends_a_worker_too() -> None:
    """A worker sets its own alarm, so that not even a stuck parent keeps it alive."""
    source = Path(__file__).resolve().parents[2] / "dataplane/lakehouse/sql/worker.py"
    assert source.read_text().count("signal.setitimer(signal.ITIMER_REAL, limit_s)") == 2
