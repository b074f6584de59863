"""How each set of rows is searched: walk its graph, or measure every row that matches.

Pure: numbers in, a choice out.  Costs are in distances of a scan.  A walk keeps `ef` candidates and meets about
`ef · fan` rows to fill them; where only a share of the rows is admitted it has to meet more.
"""

import math
from dataclasses import dataclass

from lakehouse.index.settings import IndexSettings

FAN_PER_M = 1.1
"""Rows met per candidate kept, over m: neighbours on level 0 are up to 2m, and about half were met before."""
DESCENT = 100
"""Distances from the entry point down to level 0."""
RARITY = 0.75
"""Where a share s of the rows is admitted, a walk meets (1 / s) ** RARITY times as many: measured on embeddings with
s from 0.2 to 0.9, this is a sixth too much."""
NO_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True)
class Choice:
    """`walk` the graph, giving up after `visits_max` distances; or measure the rows that match."""

    walk: bool
    cost: float
    ef: int = 0
    """Candidates the walk keeps."""
    visits_max: int = NO_LIMIT


@dataclass(frozen=True, slots=True)
class Graph:
    """What a choice has to know of a graph."""

    m: int
    coded: bool
    """Walked by 8-bit codes."""


def choose(
    rows: int, matched: int, ef: int, graph: Graph | None, *, filtered: bool, settings: IndexSettings
) -> Choice:
    """The cheaper way to search `rows` rows, of which `matched` are live and admitted."""
    scan = Choice(walk=False, cost=matched)
    if graph is None or matched <= ef:
        return scan
    kept = math.ceil(ef * settings.oversampling) if graph.coded else ef
    factor = settings.coded_walk_cost if graph.coded else settings.walk_cost
    visits = walk_visits(rows, matched, kept, graph.m)
    if visits * factor >= matched:
        return scan
    # A walk may meet fewer admitted rows than their share promises.  Giving up when it has cost half a scan of the
    # matching rows, or what was expected, bounds the whole search at two such scans.
    limit = max(visits, int(matched / factor / 2)) if filtered else NO_LIMIT
    return Choice(walk=True, cost=visits * factor, ef=min(kept, matched), visits_max=limit)


def walk_visits(rows: int, matched: int, kept: int, m: int) -> int:
    """Distances a walk is expected to compute."""
    return min(rows, int((DESCENT + kept * m * FAN_PER_M) * (rows / max(1, matched)) ** RARITY))
