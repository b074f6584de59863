"""Which parts of an index to rebuild into one segment next: pure, sizes in, a choice out.

Fresh rows (the tail, and parts without a graph) are searched exactly, so they are few; graph segments cost every
search one walk each, so they are few too; and the work per row stays logarithmic, so large segments are not rebuilt for
a handful of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lakehouse.index.settings import IndexSettings


@dataclass(frozen=True, slots=True)
class PartSize:
    """One part of an index as the choice sees it."""

    serial: int
    rows: int
    """Dead ones included."""
    live: int
    has_graph: bool


def choose(parts: Sequence[PartSize], *, idle: bool, settings: IndexSettings) -> tuple[int, ...]:
    """The serials to merge into one new segment; none when there is nothing worth doing."""
    fresh = [part for part in parts if not part.has_graph]
    graphs = sorted((part for part in parts if part.has_graph), key=lambda part: part.live)
    worn = [part for part in graphs if part.rows - part.live >= max(1, settings.dead_ratio_max * part.rows)]
    fresh_rows = sum(part.rows for part in fresh)
    full = fresh_rows >= settings.tail_rows_max
    if idle and fresh_rows >= settings.settle_rows_min:
        full = True
    kept = [part for part in graphs if part not in worn]
    chosen = [*(fresh if full else ()), *worn]
    if idle:
        chosen += _absorbed(chosen, kept, settings)
    elif len(kept) + bool(chosen) > settings.segments_max:
        # A tier: the smallest segments, as long as each is no larger than what joins it.
        chosen += _tier(chosen, kept)
    if chosen and not full:
        chosen += fresh  # few rows, and a rebuild is under way
    return tuple(sorted(part.serial for part in chosen))


def _absorbed(
    chosen: Sequence[PartSize], graphs: Sequence[PartSize], settings: IndexSettings
) -> list[PartSize]:
    """Segments, smallest first, as long as what joins each is a fair share of it."""
    total = sum(part.live for part in chosen)
    taken: list[PartSize] = []
    for part in graphs:
        if taken or chosen:
            few = len(graphs) - len(taken) <= settings.segments_max
            if few and total < settings.settle_ratio * part.live:
                break
        taken.append(part)
        total += part.live
    return taken if chosen or len(taken) > 1 else []


def _tier(chosen: Sequence[PartSize], graphs: Sequence[PartSize]) -> list[PartSize]:
    total = sum(part.live for part in chosen)
    taken: list[PartSize] = []
    for part in graphs:
        if len(taken) >= 2 and total < part.live:
            break
        taken.append(part)
        total += part.live
    return taken
