"""The order of the measurement: build the peer, fill the server, take turns, restart, report.

What it does not do: judge; `report` compares with the targets.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Self

import numpy as np

from lakehouse.cli.bench import data as datasets
from lakehouse.cli.bench import ours, report
from lakehouse.cli.bench.data import Data, Filter, K, recall
from lakehouse.cli.bench.ours import Measured
from lakehouse.cli.bench.peer import BATCH, Peer
from lakehouse.cli.output import Format, err_console
from lakehouse.cli.process import ServerProcess, free_port
from lakehouse.runtime import Runtime, SystemRuntime

EF_LADDER = (16, 32, 64, 128, 256)
EF_DEFAULT = 64
SCAN_QUERIES = 50


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    path: Path
    rows: int | None
    queries: int
    rounds: int
    out: Path

    @classmethod
    def choose(cls, path: Path | None, rows: int | None, queries: int, rounds: int, out: Path) -> Self:
        """The named file, else what is at hand."""
        return cls(path or datasets.default_path(), rows, queries, rounds, out)


@dataclass
class Bench:
    """One run and what it has found so far."""

    plan: Plan
    data: Data
    filters: list[Filter]
    folder: Path
    runtime: Runtime
    result: dict[str, Any]
    rows: dict[str, int]

    def say(self, text: str) -> None:
        """Progress, for whoever waits."""
        err_console().print(f"[dim]bench:[/] {text}", highlight=False)


def main(plan: Plan, output: Format) -> None:
    """Measure everything; print, and write JSON and the plot."""
    plan.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="run-", dir=plan.out) as folder:
        result = measure(plan, Path(folder))
    report.write(result, plan.out)
    report.show(result, plan.out, output)


def measure(plan: Plan, folder: Path) -> dict[str, Any]:
    """Every number, as one JSON-able value."""
    data, filters = datasets.load(plan.path, plan.rows, plan.queries)
    rows = {item_id: row for row, item_id in enumerate(data.ids)}
    bench = Bench(plan, data, filters, folder, SystemRuntime(), _facts(plan, data), rows)
    np.save(folder / "vectors.npy", data.vectors)
    np.save(folder / "queries.npy", data.queries)
    with Peer(folder / "vectors.npy", folder / "queries.npy") as peer:
        bench.say(f"{len(data):,} rows; building hnswlib in process (M=16, ef_construction=200)")
        built = peer.ask(do="build", threads=len(os.sched_getaffinity(0)))
        bench.result["peer"] = {"growth_bytes": built["growth_bytes"], "build_cpu_s": built["cpu_s"]}
        _measure_memory(bench)
        with _server(bench, "main") as server:
            _measure_searches(bench, peer, server)
    return bench.result


def _facts(plan: Plan, data: Data) -> dict[str, Any]:
    return {
        "file": plan.path.name,
        "rows": len(data),
        "dimension": data.dimension,
        "queries": len(data.queries),
        "rounds": plan.rounds,
        "k": K,
        "cores": len(os.sched_getaffinity(0)),
        "load_at_start": os.getloadavg()[0],
    }


@contextlib.contextmanager
def _server(bench: Bench, name: str) -> Iterator[ServerProcess]:
    server = ServerProcess(bench.folder / name, free_port(), bench.folder / f"{name}.log", bench.runtime)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def _measure_memory(bench: Bench) -> None:
    """The same rows without metadata, as hnswlib holds them, in a server of their own."""
    bench.say("memory: the same rows without metadata, until settled")
    with _server(bench, "memory") as server:
        ours.create(server, bench.data.dimension)
        empty = server.anonymous_bytes()
        ours.ingest(server, bench.data, ours.add_requests(bench.data, with_metadata=False), bench.runtime)
        settle_s = ours.settle(server, bench.runtime)
        growth = server.anonymous_bytes() - empty
        replay_s = ours.restart(server, bench.data, bench.runtime)
    bench.result["memory"] = {"empty_bytes": empty, "growth_bytes": growth, "settle_s": settle_s}
    bench.result["restart_without_metadata_s"] = replay_s


def _measure_searches(bench: Bench, peer: Peer, server: ServerProcess) -> None:
    ours.create(server, bench.data.dimension)
    requests = ours.add_requests(bench.data, with_metadata=True)
    bench.say("ingest over HTTP, durable, with metadata")
    ingested = ours.ingest(server, bench.data, requests, bench.runtime)
    del requests
    bench.result["ingest"] = {
        "seconds": ingested.seconds,
        "rows_per_s": ingested.rows_per_s,
        "visible_at_once": ingested.visible,
    }
    bench.say("searches right after ingest")
    bench.result["fresh"] = _paired(bench, peer, server, efs=(None,), rounds=1)
    bench.say("waiting until the index has settled")
    bench.result["settle_s"] = ours.settle(server, bench.runtime)
    bench.say(f"searches once settled: {bench.plan.rounds} interleaved rounds")
    bench.result["settled"] = _paired(bench, peer, server, efs=(None, *EF_LADDER), rounds=bench.plan.rounds)
    bench.result["stats"] = ours.stats(server)
    bench.say("filters")
    bench.result["filters"] = [_filtered(bench, peer, server, filter_) for filter_ in bench.filters]
    bench.say("kill -9 and restart")
    bench.result["restart_s"] = ours.restart(server, bench.data, bench.runtime)


FORMS = {"json": ours.single_json, "binary": ours.single_binary, "batch": ours.batches}


def _paired(
    bench: Bench, peer: Peer, server: ServerProcess, efs: Sequence[int | None], rounds: int
) -> dict[str, Any]:
    """Each round asks every form and every ef of both sides once, in turn; the median round counts."""
    truth = bench.data.truth
    searches = {(form, ef): make(bench.data, ef) for form, make in FORMS.items() for ef in efs}
    seen: dict[tuple[str, int | None], list[Measured]] = {}
    for _ in range(rounds):
        for ef in EF_LADDER:
            for form, batch in (("peer", 1), ("peer_batch", BATCH)):
                answer = peer.ask(do="search", ef=ef, batch=batch, k=K)
                cpu = answer["cpu_s"] / len(answer["found"])
                seen.setdefault((form, ef), []).append(Measured(cpu, recall(answer["found"], truth)))
            for form in FORMS:
                if ef in efs:
                    _ask(bench, server, searches, seen, form, ef)
        for form in FORMS:
            _ask(bench, server, searches, seen, form, None)
    return _summary(seen)


def _ask(
    bench: Bench,
    server: ServerProcess,
    searches: dict[tuple[str, int | None], ours.Searches],
    seen: dict[tuple[str, int | None], list[Measured]],
    form: str,
    ef: int | None,
) -> None:
    measured = searches[form, ef].run(server, bench.rows, bench.data.truth)
    seen.setdefault((form, ef), []).append(measured)


def _summary(seen: dict[tuple[str, int | None], list[Measured]]) -> dict[str, Any]:
    summary: dict[str, list[dict[str, Any]]] = {}
    for (form, ef), rounds in seen.items():
        summary.setdefault(form, []).append(
            {
                "ef": EF_DEFAULT if ef is None else ef,
                "default": ef is None,
                "recall": rounds[0].recall,
                "cpu_us": median(one.cpu_s for one in rounds) * 1e6,
                "cpu_us_rounds": [one.cpu_s * 1e6 for one in rounds],
            }
        )
    return summary


def _filtered(bench: Bench, peer: Peer, server: ServerProcess, filter_: Filter) -> dict[str, Any]:
    """Recall and CPU under a filter, beside scanning everything exactly."""
    data = replace(bench.data, queries=bench.data.queries[:: max(1, len(bench.data.queries) // 200)])
    truth = filter_.truth[:: max(1, len(bench.data.queries) // 200)]
    mask = bench.folder / "mask.npy"
    np.save(mask, filter_.mask)
    scan = peer.ask(do="scan", mask=str(mask), k=K, queries=SCAN_QUERIES)
    measured = ours.single_json(data, filter_=filter_).run(server, bench.rows, truth)
    return {
        "filter": filter_.text,
        "matched": filter_.matched,
        "part": filter_.matched / len(bench.data),
        "recall": measured.recall,
        "cpu_us": measured.cpu_s * 1e6,
        "scan_cpu_us": scan["cpu_s"] / scan["queries"] * 1e6,
    }
