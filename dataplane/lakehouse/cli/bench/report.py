"""What the numbers say: targets met or missed, a table for people, JSON and a plot for later.

What it does not do: measure.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lakehouse.cli.output import Format, console, print_json, print_table

SINGLE_EXTRA_US = 150.0
"""What HTTP and JSON may cost."""
BATCH_FACTOR = 1.18
INGEST_ROWS_PER_S = 5_000.0
MEMORY_FACTOR = 1.3
RESTART_S = 5.0
RECALL = 0.98
TARGET_ROWS = 50_000
MIB = 1 << 20


@dataclass(frozen=True)
class Target:
    """One line that must hold."""

    name: str
    target: str
    measured: str
    met: bool


def peer_at(ladder: list[dict[str, Any]], recall: float) -> float:
    """CPU per query that hnswlib needs for this recall, by straight lines between the steps of its ladder."""
    steps = sorted((step["recall"], step["cpu_us"]) for step in ladder)
    return float(np.interp(recall, [step[0] for step in steps], [step[1] for step in steps]))


def _default(forms: dict[str, Any], form: str) -> dict[str, Any]:
    found: dict[str, Any] = next(step for step in forms[form] if step["default"])
    return found


def targets(result: dict[str, Any]) -> list[Target]:
    """Every line, in the order of the table."""
    settled = result["settled"]
    single, batch = _default(settled, "json"), _default(settled, "batch")
    single_peer, batch_peer = (
        peer_at(settled["peer"], single["recall"]),
        peer_at(settled["peer_batch"], batch["recall"]),
    )
    growth, peer_growth = result["memory"]["growth_bytes"], result["peer"]["growth_bytes"]
    ingest = result["ingest"]
    lines = [
        Target(
            "single JSON search, CPU",
            f"≤ hnswlib {single_peer:.0f} + {SINGLE_EXTRA_US:.0f} µs",
            f"{single['cpu_us']:.0f} µs (+{single['cpu_us'] - single_peer:.0f}) at recall {single['recall']:.4f}",
            single["cpu_us"] <= single_peer + SINGLE_EXTRA_US,
        ),
        Target(
            "batches of 32, CPU per query",
            f"≤ {BATCH_FACTOR} × hnswlib {batch_peer:.0f} µs",
            f"{batch['cpu_us']:.0f} µs ({batch['cpu_us'] / batch_peer:.2f} ×) at recall {batch['recall']:.4f}",
            batch["cpu_us"] <= BATCH_FACTOR * batch_peer,
        ),
        Target(
            "recall@10 at default settings",
            f"≥ {RECALL}",
            f"{single['recall']:.4f}",
            single["recall"] >= RECALL,
        ),
        Target(
            "durable ingest, at once searchable",
            f"≥ {INGEST_ROWS_PER_S:,.0f} rows/s",
            f"{ingest['rows_per_s']:,.0f} rows/s, {'all' if ingest['visible_at_once'] else 'NOT all'} searchable",
            ingest["rows_per_s"] >= INGEST_ROWS_PER_S and ingest["visible_at_once"],
        ),
        Target(
            "growth of anonymous memory",
            f"≤ {MEMORY_FACTOR} × hnswlib {peer_growth / MIB:,.0f} MiB",
            f"{growth / MIB:,.0f} MiB ({growth / peer_growth:.2f} ×)",
            growth <= MEMORY_FACTOR * peer_growth,
        ),
        Target(
            "kill -9 to first right answer",
            f"≤ {RESTART_S:.0f} s",
            f"{result['restart_s']:.2f} s",
            result["restart_s"] <= RESTART_S,
        ),
    ]
    return lines + [_filter_target(found) for found in result["filters"]]


def _filter_target(found: dict[str, Any]) -> Target:
    limit = found["scan_cpu_us"] + SINGLE_EXTRA_US
    return Target(
        f"filter matching {found['part']:.2%}",
        f"recall ≥ {RECALL}, ≤ exact scan {found['scan_cpu_us']:,.0f} + {SINGLE_EXTRA_US:.0f} µs",
        f"recall {found['recall']:.4f}, {found['cpu_us']:,.0f} µs",
        found["recall"] >= RECALL and found["cpu_us"] <= limit,
    )


FORM_NAMES = {
    "peer": "hnswlib in process, single",
    "json": "lakehouse over HTTP, single JSON",
    "binary": "lakehouse over HTTP, single binary",
    "peer_batch": "hnswlib in process, batches of 32",
    "batch": "lakehouse over HTTP, batches of 32 binary",
}


def speeds(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table of speeds: default settings, right after ingest and settled."""
    rows = []
    for form, name in FORM_NAMES.items():
        for state, label in (("fresh", "right after ingest"), ("settled", "settled")):
            if form.startswith("peer") and state == "fresh":
                continue
            for step in result[state][form]:
                if not (step["default"] or form.startswith("peer")):
                    continue
                rows.append(
                    {
                        "search": name,
                        "index": "–" if form.startswith("peer") else label,
                        "ef": step["ef"],
                        "recall@10": f"{step['recall']:.4f}",
                        "CPU µs/query": f"{step['cpu_us']:.0f}",
                        "queries/s/core": f"{1e6 / step['cpu_us']:,.0f}",
                    }
                )
    return rows


def show(result: dict[str, Any], out: Path, output: Format) -> None:
    """Print the result."""
    if output is Format.JSON:
        print_json(result | {"targets": [asdict(line) for line in targets(result)]})
        return
    print_table(speeds(result), title=f"{result['rows']:,} × {result['dimension']} rows of {result['file']}")
    lines = targets(result)
    print_table(
        [
            {"": line.name, "target": line.target, "measured": line.measured, "met": line.met}
            for line in lines
        ],
        title="targets",
    )
    if result["rows"] < TARGET_ROWS:
        console().print("the targets are meant for the full file; on few rows, fixed costs weigh more")
    met = sum(line.met for line in lines)
    console().print(
        f"{met} of {len(lines)} met · settling took {result['settle_s']:.0f} s · "
        f"load average at start {result['load_at_start']:.1f} on {result['cores']} cores\n"
        f"written: {out / 'bench.json'} · {out / 'recall-throughput.png'}",
        highlight=False,
    )


def write(result: dict[str, Any], out: Path) -> None:
    """JSON and the plot."""
    import orjson

    from lakehouse.cli.bench import plot

    whole = result | {"targets": [asdict(line) for line in targets(result)]}
    (out / "bench.json").write_bytes(orjson.dumps(whole, option=orjson.OPT_INDENT_2))
    plot.draw(result, out / "recall-throughput.png")
