"""What an index rebuilds next, and how it searches a part: choices over sizes."""

import pytest

from lakehouse.index import planner, tiers
from lakehouse.index.settings import IndexSettings
from lakehouse.index.tiers import PartSize

SETTINGS = IndexSettings()


def graph(serial: int, live: int, dead: int = 0) -> PartSize:
    return PartSize(serial, live + dead, live, has_graph=True)


def fresh(serial: int, live: int, dead: int = 0) -> PartSize:
    return PartSize(serial, live + dead, live, has_graph=False)


@pytest.mark.parametrize(
    ("parts", "busy", "idle"),
    [
        ([], (), ()),
        ([fresh(0, 100)], (), ()),
        ([fresh(0, 1_024)], (), (0,)),
        ([fresh(0, 8_191)], (), (0,)),
        ([fresh(0, 8_192)], (0,), (0,)),
        ([fresh(0, 100, dead=8_092)], (0,), (0,)),
        ([fresh(0, 5_000), fresh(1, 4_000)], (0, 1), (0, 1)),
        ([graph(0, 60_000)], (), ()),
        ([graph(0, 60_000), fresh(1, 500)], (), ()),
        ([graph(0, 60_000), fresh(1, 3_000)], (), (1,)),
        ([graph(0, 60_000), fresh(1, 7_000)], (), (0, 1)),
        ([graph(0, 60_000), fresh(1, 9_000)], (1,), (0, 1)),
        ([graph(0, 60_000), graph(1, 3_000)], (), ()),
        ([graph(0, 60_000), graph(1, 3_000), fresh(2, 100)], (), ()),
        ([graph(0, 60_000), graph(1, 3_000), fresh(2, 2_000)], (), (1, 2)),
        ([graph(0, 60_000), graph(1, 3_000), graph(2, 4_000)], (), (0, 1, 2)),
        ([graph(0, 8_000), graph(1, 15_000), graph(2, 30_000), fresh(3, 900)], (), (0, 1, 2, 3)),
        ([graph(0, 79, dead=20)], (0,), (0,)),
        ([graph(0, 80, dead=19)], (), ()),
        ([graph(0, 79, dead=20), fresh(1, 10)], (0, 1), (0, 1)),
        ([graph(0, 79, dead=20), graph(1, 1_000)], (0,), (0,)),
        ([graph(0, 50_000, dead=20_000), fresh(1, 20_000)], (0, 1), (0, 1)),
        ([graph(n, 10_000) for n in range(6)], (), tuple(range(6))),
        ([graph(n, 10_000) for n in range(7)], tuple(range(7)), tuple(range(7))),
        ([graph(n, 10_000 << n) for n in range(6)] + [fresh(6, 9_000)], (0, 1, 6), tuple(range(7))),
    ],
)
def test_what_is_rebuilt(parts: list[PartSize], busy: tuple[int, ...], idle: tuple[int, ...]) -> None:
    assert tiers.choose(parts, idle=False, settings=SETTINGS) == busy
    assert tiers.choose(parts, idle=True, settings=SETTINGS) == idle


@pytest.mark.parametrize("idle_every", [1, 5, 1_000])
@pytest.mark.parametrize("batch", [100, 1_000, 20_000])
def test_a_long_ingest_rebuilds_each_row_a_few_times(batch: int, idle_every: int) -> None:
    parts: list[PartSize] = [fresh(0, 0)]
    built = written = serial = 0
    for step in range(3_000_000 // batch):
        written += batch
        tail = parts.pop()
        parts.append(fresh(tail.serial, tail.live + batch))
        for idle in (False, step % idle_every == 0):
            chosen = tiers.choose(parts, idle=idle, settings=SETTINGS)
            if not chosen:
                continue
            live = sum(part.live for part in parts if part.serial in chosen)
            built += live
            serial += 1
            tail_left = [part for part in parts if not part.has_graph and part.serial not in chosen]
            parts = [part for part in parts if part.has_graph and part.serial not in chosen]
            parts += [graph(serial, live), *(tail_left or [fresh(-serial, 0)])]
        assert sum(part.has_graph for part in parts) <= SETTINGS.segments_max + 1
        assert sum(part.live for part in parts) == written
    assert built <= 45 * written


@pytest.mark.parametrize("idle", [False, True])
def test_building_comes_to_rest(idle: bool) -> None:
    parts = [graph(n, 1_000 + 777 * n, dead=n * 97) for n in range(20)] + [fresh(99, 5_000)]
    for step in range(100, 140):
        chosen = tiers.choose(parts, idle=idle, settings=SETTINGS)
        if not chosen:
            return
        merged = graph(step, sum(part.live for part in parts if part.serial in chosen))
        parts = [part for part in parts if part.serial not in chosen] + [merged]
    raise AssertionError(parts)


def choice(
    matched: int, *, rows: int = 60_000, ef: int = 64, filtered: bool = True, coded: bool = True
) -> planner.Choice:
    return planner.choose(rows, matched, ef, planner.Graph(16, coded), filtered=filtered, settings=SETTINGS)


@pytest.mark.parametrize("coded", [False, True])
def test_few_matching_rows_are_measured_and_many_walked(coded: bool) -> None:
    shares = (1, 60, 600, 6_000, 30_000, 60_000)
    assert [choice(matched, coded=coded).walk for matched in shares] == [False] * 4 + [True] * 2
    assert not choice(1_000, rows=1_000, filtered=False, coded=coded).walk
    assert choice(10_000, rows=10_000, filtered=False, coded=coded).walk
    assert not planner.choose(60_000, 60_000, 64, None, filtered=False, settings=SETTINGS).walk


def test_a_walk_by_codes_keeps_more() -> None:
    assert (choice(60_000, coded=False).ef, choice(60_000).ef) == (64, 96)
    assert choice(60_000, ef=10_000, filtered=False).walk is False


@pytest.mark.parametrize("matched", range(1, 60_001, 997))
@pytest.mark.parametrize("ef", [10, 64, 1_000, 10_000])
@pytest.mark.parametrize("coded", [False, True])
def test_no_filter_costs_more_than_two_scans_of_what_matches(matched: int, ef: int, coded: bool) -> None:
    chosen = choice(matched, ef=ef, coded=coded)
    assert chosen.cost <= matched
    if chosen.walk:
        factor = SETTINGS.coded_walk_cost if coded else SETTINGS.walk_cost
        assert chosen.visits_max * factor + matched <= 2 * matched + factor
