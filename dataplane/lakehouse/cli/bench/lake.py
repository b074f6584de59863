"""SQL beside the index: what a join with `vector_search` costs, and what it costs others.

Three questions, each answered by both sides in turn in one run: a search joined to its dataset against DuckDB scanning
every vector; a hundred searches in one LATERAL against the same hundred in one batch over HTTP; searches alone against
searches beside queries that never end.  What it does not do: judge SQL by itself; DuckDB runs it on both sides.
"""

import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import duckdb
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from lakehouse.cli.bench import data as datasets
from lakehouse.cli.bench import ours
from lakehouse.cli.bench.data import Data, K, recall
from lakehouse.cli.bench.wire import Connection, encoded
from lakehouse.cli.output import Format, console, err_console, print_json, print_table
from lakehouse.cli.process import ServerProcess, free_port
from lakehouse.client import Client
from lakehouse.core.errors import LakehouseError
from lakehouse.core.types import Vectors
from lakehouse.runtime import Runtime, SystemRuntime

QUERIES = 50
LATERAL_QUERIES = 100
ATTACKERS = 2
BESIDE_S = 8.0
JOIN_FACTOR = 10.0
LATERAL_FACTOR = 2.0
BESIDE_FACTOR = 1.5
RECALL = 0.98
DATASET, ASKED = "packages", "queries"
JOIN = f"""SELECT p.id, p.section, p.description, v.distance
FROM vector_search('{ours.INDEX}', $q, k := {K}) v JOIN {DATASET} p ON p.id = v.id ORDER BY v.distance"""
LATERAL = f"""SELECT q.number, v.id, v.distance
FROM {ASKED} q, LATERAL (SELECT * FROM vector_search('{ours.INDEX}', q.embedding, k := {K})) v"""
ATTACK = "SELECT sum(a.range * b.range) FROM range(10000000) a, range(10000000) b"

Seconds = list[float]


@dataclass(frozen=True)
class Bench:
    """One run: a server that holds the rows as an index and as a dataset, and the same rows for DuckDB alone."""

    data: Data
    server: ServerProcess
    lake: Client
    alone: duckdb.DuckDBPyConnection
    runtime: Runtime
    rounds: int

    def timed(self, call: Callable[[], Any]) -> tuple[float, Any]:
        """Seconds, and what came back."""
        began = self.runtime.monotonic()
        answer = call()
        return self.runtime.monotonic() - began, answer


def main(path: Path | None, rounds: int, out: Path, output: Format) -> None:
    """Measure, print, and write JSON."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="lake-", dir=out) as folder:
        result = measure(path or datasets.default_path(), Path(folder), rounds)
    (out / "lake.json").write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2))
    _show(result, out, output)


def measure(path: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Every number, as one JSON-able value."""
    data, _ = datasets.load(path, None, LATERAL_QUERIES)
    runtime = SystemRuntime()
    server = ServerProcess(folder / "data", free_port(), folder / "server.log", runtime)
    try:
        server.start()
        with Client(server.url, timeout_s=600) as lake:
            bench = Bench(
                data, server, lake, _fill(data, path, server, lake, folder, runtime), runtime, rounds
            )
            return {
                "rows": len(data),
                "dimension": data.dimension,
                "cores": len(os.sched_getaffinity(0)),
                "join": _join(bench),
                "lateral": _lateral(bench),
                "beside": _beside(bench),
            }
    finally:
        server.kill()
        runtime.close()


def _fill(
    data: Data, path: Path, server: ServerProcess, lake: Client, folder: Path, runtime: Runtime
) -> duckdb.DuckDBPyConnection:
    """The stored rows as an index and as a dataset; the held-out ones as a dataset of queries."""
    _say(f"{len(data):,} rows into an index and a dataset")
    ours.create(server, data.dimension)
    ours.ingest(server, data, ours.add_requests(data, with_metadata=False), runtime)
    table = pq.read_table(path)
    stored = table.filter(pa.array(np.isin(table["id"].to_pylist(), data.ids)))
    pq.write_table(stored, folder / "stored.parquet", compression="zstd", row_group_size=32_768)
    asked = pa.FixedSizeListArray.from_arrays(pa.array(data.queries.reshape(-1)), data.dimension)
    numbers = pa.array(range(len(data.queries)))
    pq.write_table(pa.table({"number": numbers, "embedding": asked}), folder / "asked.parquet")
    lake.ingest(folder / "stored.parquet", name=DATASET)
    lake.ingest(folder / "asked.parquet", name=ASKED)
    _say("waiting until the index has settled")
    ours.settle(server, runtime)
    alone = duckdb.connect()
    objects = [str(server.data / one["key"]) for one in lake.dataset(DATASET).manifest["objects"]]
    alone.execute(f"CREATE VIEW {DATASET} AS FROM read_parquet({objects!r})")
    alone.execute(f"CREATE VIEW original AS FROM read_parquet('{folder / 'stored.parquet'}')")
    alone.execute(f"CREATE TABLE held AS FROM {DATASET}")
    return alone


def _join(bench: Bench) -> dict[str, Any]:
    """The nearest rows with their columns, each way, in turn."""
    _say("a search joined to its dataset")
    ways: dict[str, Callable[[Vectors], list[str]]] = {
        "lakehouse": lambda query: [row[0] for row in bench.lake.sql(JOIN, {"q": query.tolist()}).rows()],
        "duckdb over its Parquet": lambda query: _brute(bench, DATASET, query),
        "duckdb over the original file": lambda query: _brute(bench, "original", query),
        "duckdb in memory": lambda query: _brute(bench, "held", query),
    }
    seconds: dict[str, Seconds] = {way: [] for way in ways}
    found: dict[str, list[list[str]]] = {way: [] for way in ways}
    for query in bench.data.queries[:QUERIES]:
        for way, ask in ways.items():
            took, ids = bench.timed(lambda ask=ask, query=query: ask(query))  # type: ignore[misc]
            seconds[way].append(took)
            found[way].append(ids)
    rows = {item_id: row for row, item_id in enumerate(bench.data.ids)}
    truth = bench.data.truth[:QUERIES]
    return {
        way: {
            "median_ms": median(seconds[way]) * 1e3,
            "recall": recall([[rows[item_id] for item_id in ids] for ids in found[way]], truth),
        }
        for way in ways
    }


def _brute(bench: Bench, table: str, query: Vectors) -> list[str]:
    sql = f"""SELECT id, section, description,
        array_cosine_distance(embedding::FLOAT[{bench.data.dimension}], $q::FLOAT[{bench.data.dimension}]) AS distance
        FROM {table} ORDER BY distance LIMIT {K}"""
    return [row[0] for row in bench.alone.execute(sql, {"q": query.tolist()}).fetchall()]


def _lateral(bench: Bench) -> dict[str, Any]:
    """A hundred searches at once, in SQL and by batch search, in turn."""
    _say(f"{LATERAL_QUERIES} searches in one LATERAL")
    queries = bench.data.queries
    body = orjson.dumps({"vectors": queries, "k": K}, option=orjson.OPT_SERIALIZE_NUMPY)
    as_json = encoded("POST", f"{ours.BASE}/search/batch", body)
    as_binary = encoded(
        "POST", f"{ours.BASE}/search/batch?k={K}", queries.tobytes(), "application/octet-stream"
    )
    seconds: dict[str, Seconds] = {"sql": [], "http json": [], "http binary": []}
    hits = 0
    with Connection(bench.server.port) as wire:
        for _ in range(bench.rounds * 4):
            took, table = bench.timed(lambda: bench.lake.sql(LATERAL))
            hits = len(table)
            seconds["sql"].append(took)
            seconds["http json"].append(bench.timed(lambda: wire.send(as_json))[0])
            seconds["http binary"].append(bench.timed(lambda: wire.send(as_binary))[0])
    return {"queries": len(queries), "hits": hits} | {
        f"{way} median_ms": median(took) * 1e3 for way, took in seconds.items()
    }


def _beside(bench: Bench) -> dict[str, Any]:
    """Searches one after the other: alone, beside endless queries, and alone again."""
    _say(f"searches beside {ATTACKERS} queries that never end")
    alone = _searches(bench)
    stop = threading.Event()
    attackers = [threading.Thread(target=_attack, args=(bench.server.url, stop)) for _ in range(ATTACKERS)]
    for attacker in attackers:
        attacker.start()
    try:
        beside = _searches(bench)
    finally:
        stop.set()
        for attacker in attackers:
            attacker.join()
    again = _searches(bench)
    return {"alone": _tail(alone + again), "beside": _tail(beside)}


def _searches(bench: Bench) -> Seconds:
    requests = [
        encoded(
            "POST",
            f"{ours.BASE}/search",
            orjson.dumps({"vector": q, "k": K}, option=orjson.OPT_SERIALIZE_NUMPY),
        )
        for q in bench.data.queries
    ]
    seconds: Seconds = []
    deadline = bench.runtime.monotonic() + BESIDE_S
    with Connection(bench.server.port) as wire:
        while bench.runtime.monotonic() < deadline:
            for request in requests:
                seconds.append(bench.timed(lambda request=request: wire.send(request))[0])  # type: ignore[misc]
    return seconds


def _attack(url: str, stop: threading.Event) -> None:
    with Client(url) as lake:
        while not stop.is_set():
            try:
                lake.sql(ATTACK, timeout_s=1.0)
            except LakehouseError:
                continue


def _tail(seconds: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.percentile(np.array(seconds) * 1e3, [50, 99])
    return {"searches": len(seconds), "p50_ms": float(p50), "p99_ms": float(p99)}


def _lines(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Targets, what was measured, and whether they were met."""
    join, lateral, beside = result["join"], result["lateral"], result["beside"]
    own, brute, held = join["lakehouse"], join["duckdb over its Parquet"], join["duckdb in memory"]
    gain = brute["median_ms"] / own["median_ms"]
    factor = lateral["sql median_ms"] / lateral["http json median_ms"]
    slower = beside["beside"]["p99_ms"] / beside["alone"]["p99_ms"]
    return [
        {
            "": "vector_search joined to its dataset",
            "target": f"≥ {JOIN_FACTOR:.0f} × faster than DuckDB scanning the dataset's Parquet",
            "measured": f"{own['median_ms']:.1f} ms against {brute['median_ms']:.1f} ms ({gain:.1f} ×); "
            f"over the original file {join['duckdb over the original file']['median_ms']:.1f} ms, "
            f"with all of it in memory {held['median_ms']:.1f} ms",
            "met": gain >= JOIN_FACTOR,
        },
        {
            "": f"its recall@{K}",
            "target": f"≥ {RECALL}",
            "measured": f"{own['recall']:.4f}",
            "met": own["recall"] >= RECALL,
        },
        {
            "": f"{lateral['queries']} searches in one LATERAL",
            "target": f"≤ {LATERAL_FACTOR:.0f} × one batch search over HTTP",
            "measured": f"{lateral['sql median_ms']:.1f} ms against {lateral['http json median_ms']:.1f} ms as JSON "
            f"({factor:.2f} ×), {lateral['http binary median_ms']:.1f} ms as binary",
            "met": factor <= LATERAL_FACTOR,
        },
        {
            "": f"p99 of searches beside {ATTACKERS} endless queries",
            "target": f"≤ {BESIDE_FACTOR} × alone",
            "measured": f"{beside['beside']['p99_ms']:.2f} ms against {beside['alone']['p99_ms']:.2f} ms "
            f"({slower:.2f} ×)",
            "met": slower <= BESIDE_FACTOR,
        },
    ]


def _show(result: dict[str, Any], out: Path, output: Format) -> None:
    lines = _lines(result)
    if output is Format.JSON:
        print_json(result | {"targets": lines})
        return
    print_table(lines, title=f"{result['rows']:,} × {result['dimension']} rows, {result['cores']} cores")
    console().print(
        f"{sum(line['met'] for line in lines)} of {len(lines)} met · written: {out / 'lake.json'}"
    )


def _say(text: str) -> None:
    err_console().print(f"[dim]bench:[/] {text}", highlight=False)
