"""How each set of rows is searched: walk its graph, or measure every row that matches.

Pure: numbers in, a choice out.  Costs are in distances of a scan.  A walk keeps `ef` candidates and meets about
`ef · fan` rows to fill them; where only a share s of the rows is admitted it has to meet 1 / s times as many.
"""

from dataclasses import dataclass

from lakehouse.index.settings import IndexSettings

FAN_PER_M = 1.1
"""Rows met per candidate kept, over m: neighbours on level 0 are up to 2m, and about half were met before."""
DESCENT = 100
"""Distances from the entry point down to level 0."""


@dataclass(frozen=True, slots=True)
class Choice:
    """`walk` the graph with `ef`, giving up after `visits_max` distances; or measure `matched` rows."""

    walk: bool
    cost: float
    visits_max: int = 1 << 62


def choose(
    rows: int, matched: int, ef: int, m: int, *, has_graph: bool, filtered: bool, settings: IndexSettings
) -> Choice:
    """The cheaper way to search `rows` rows, of which `matched` are live and admitted."""
    scan = Choice(walk=False, cost=matched)
    if not has_graph or matched <= ef:
        return scan
    visits = walk_visits(rows, matched, ef, m)
    cost = visits * settings.scan_factor
    if cost >= matched:
        return scan
    # A walk may meet fewer admitted rows than their share promises.  Giving up when it has cost half a scan of the
    # matching rows bounds the whole search at 1.5 of them.
    limit = int(matched / settings.scan_factor / 2) if filtered else 1 << 62
    return Choice(walk=True, cost=cost, visits_max=max(limit, visits))


def walk_visits(rows: int, matched: int, ef: int, m: int) -> int:
    """Distances a walk is expected to compute."""
    return min(rows, int((DESCENT + ef * m * FAN_PER_M) * rows / max(1, matched)))
