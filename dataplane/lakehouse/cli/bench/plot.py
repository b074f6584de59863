"""Recall against throughput per core: up and to the right is better.

Needs matplotlib, the `bench` extra.  What it does not do: show a window.
"""

from pathlib import Path
from typing import Any

from lakehouse.core.errors import Invalid

STYLES = {
    "peer": ("hnswlib, in process", "#6b7280", "o"),
    "json": ("lakehouse, HTTP + JSON", "#2563eb", "s"),
    "binary": ("lakehouse, HTTP + binary", "#0d9488", "^"),
    "peer_batch": ("hnswlib, in process", "#6b7280", "o"),
    "batch": ("lakehouse, HTTP + binary", "#2563eb", "s"),
}
EF_DEFAULT = 64
PANELS = (
    ("one query per call", ("peer", "binary", "json")),
    ("batches of 32 queries", ("peer_batch", "batch")),
)


def draw(result: dict[str, Any], path: Path) -> None:
    """Two panels with a shared axis: single queries, and batches."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Invalid("the plot needs matplotlib: `pip install lakehouse[bench]`") from error
    figure = Figure(figsize=(11, 5.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (title, forms) in zip(panels, PANELS, strict=True):
        for form in forms:
            _line(axes, form, result["settled"][form])
        _dress(axes, title)
    panels[0].set_ylabel("queries per second and core (1 / CPU time)")
    figure.suptitle(
        f"Recall against throughput: {result['rows']:,} embeddings × {result['dimension']}, k = {result['k']}, "
        f"once settled\n{_ladder(result)}",
        fontsize=12,
    )
    figure.savefig(path)


def _ladder(result: dict[str, Any]) -> str:
    steps = sorted(step["ef"] for step in result["settled"]["peer"])
    named = ", ".join(f"{ef} (ring: the default)" if ef == EF_DEFAULT else str(ef) for ef in steps)
    return f"points of a line, from the left: ef = {named}"


def _line(axes: Any, form: str, steps: list[dict[str, Any]]) -> None:
    label, colour, marker = STYLES[form]
    ladder = sorted((step for step in steps if not step["default"]), key=lambda step: step["ef"])
    x = [step["recall"] for step in ladder]
    y = [1e6 / step["cpu_us"] for step in ladder]
    axes.plot(x, y, color=colour, marker=marker, markersize=6, linewidth=1.8, label=label)
    for step, across, up in zip(ladder, x, y, strict=True):
        if step["ef"] == EF_DEFAULT:
            axes.plot(
                across,
                up,
                marker="o",
                markersize=13,
                markerfacecolor="none",
                markeredgecolor=colour,
                markeredgewidth=1.4,
            )


def _dress(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("recall@10")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:,.0f}" if f"{value:.0f}"[0] in "25" else "")
    axes.grid(visible=True, which="major", color="#d1d5db", linewidth=0.8)
    axes.grid(visible=True, which="minor", axis="y", color="#eef0f3", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12, y=0.14)
    axes.legend(frameon=False, loc="lower left")
