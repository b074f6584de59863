"""Filters: what parses, what is refused, and what it matches."""

import orjson
import pytest

from lakehouse.core.errors import Invalid
from lakehouse.index import columns
from lakehouse.index.columns import Columns
from lakehouse.index.predicate import DEPTH_MAX, IN_ITEMS_MAX, TEXT_BYTES_MAX, parse

ITEMS: list[object] = [
    {
        "price": 10,
        "country": "SE",
        "tags": ["new", "red"],
        "maker": {"name": "Acme", "size": 3},
        "sold": True,
    },
    {"price": 49.5, "country": "DK", "tags": [], "maker": {"name": "acme ltd"}, "sold": False},
    {"price": -3, "country": "", "tags": ["red"], "maker": None},
    {"price": "unknown", "country": None, "tags": "red", "a.b": 7, "große Höhe": "ja"},
    {},
    [1, 2],
]


def matched(text: str, items: list[object] | None = None) -> list[int]:
    documents = [orjson.dumps(item) for item in (ITEMS if items is None else items)] + [b""]
    found = Columns(lambda start, stop: documents[start:stop], 64, predicates_max=4, columns_max=4)
    predicate = parse(text)
    schema, overflowed = found.schema(len(documents))
    columns.check(predicate, schema, complete=not overflowed)
    word = int(found.mask(predicate, len(documents))[0])
    return [row for row in range(len(documents)) if word >> row & 1]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("price < 50", [0, 1, 2]),
        ("50 > price", [0, 1, 2]),
        ("price = 10.0", [0]),
        ("price <> 10", [1, 2]),
        ("price != -3", [0, 1]),
        ("NOT price = 10", [1, 2]),
        ("price BETWEEN -3 AND 10", [0, 2]),
        ("price NOT BETWEEN -3 AND 10", [1]),
        ("price IN (10, -3)", [0, 2]),
        ("price NOT IN (10, -3)", [1]),
        ("price = 'unknown'", [3]),
        ("price IN (10, 'unknown')", [0, 3]),
        ("country IN ('SE', 'DK')", [0, 1]),
        ("country >= 'E'", [0]),
        ("country = ''", [2]),
        ("country IS NULL", [3, 4, 5, 6]),
        ("country IS NOT NULL", [0, 1, 2]),
        ("country NOT LIKE 'S%'", [1, 2]),
        ("country LIKE '_K'", [1]),
        ("maker.name = 'Acme'", [0]),
        ("maker.name ILIKE 'acme%'", [0, 1]),
        ("maker.name NOT ILIKE '%ltd'", [0]),
        ("maker.size >= 3", [0]),
        ("maker IS NULL", [2, 3, 4, 5, 6]),
        ("sold", [0]),
        ("NOT sold", [1]),
        ("sold = false", [1]),
        ("tags = 'red'", [0, 2, 3]),
        ("tags <> 'new'", [2, 3]),
        ("tags IN ('new')", [0]),
        ("tags IS NULL", [4, 5, 6]),
        ('"a.b" = 7', [3]),
        ("\"große Höhe\" = 'ja'", [3]),
        ("price < 50 AND country = 'SE' OR sold = false", [0, 1]),
        ("price < 50 AND (country = 'SE' OR sold = false)", [0, 1]),
        ("TRUE", [0, 1, 2, 3, 4, 5, 6]),
        ("FALSE OR sold", [0]),
        ("NOT (price < 5 AND country = 'DK')", [0, 1, 2]),
        ("country LIKE 'S\\%'", []),
    ],
)
def test_matches(text: str, rows: list[int]) -> None:
    assert matched(text) == rows


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "price <",
        "price = ",
        "price < 50; price < 60",
        "price < 50; DROP TABLE x",
        "SELECT 1",
        "price IN (SELECT price FROM items)",
        "price IN items",
        "price IN ()",
        "EXISTS (SELECT 1)",
        "lower(country) = 'se'",
        "price + 1 = 2",
        "price::text = 'x'",
        "CAST(price AS int) = 1",
        "price = country",
        "1 = 1",
        "'x' = 'x'",
        "price = NULL",
        "price IN (1, NULL)",
        "price < 1 < 2",
        "country LIKE country",
        "country LIKE 5",
        "country LIKE 'x' ESCAPE '!'",
        "country ~ 'x'",
        "country SIMILAR TO 'x'",
        "price IS TRUE",
        "price IS NOT DISTINCT FROM 1",
        "price = 1e999",
        "price = $1",
        "price = ?",
        "price = 0x10",
        "tags = ['red']",
        "tags[0] = 'red'",
        "maker -> 'name' = 'x'",
        "(price, country) IN ((1, 'x'))",
        "price = 5 LIMIT 1",
        "price = 5 AS x",
        "*",
        "price",
        "CASE WHEN sold THEN true ELSE false END",
        "country COLLATE nocase = 'se'",
        "price = -'x'",
        "price = date '2020-01-01'",
        "price = 1 -- \x00",
        "a.b.c.d.e.f.g.h.i = 1",
        "unknown_field = 1",
        "maker.unknown = 1",
        "price = true",
        "sold = 'yes'",
        "maker = 'Acme'",
        "price LIKE 'x' AND sold LIKE 'x'",
        "'",
        '"',
        "price = 'x",
        "((((",
        "/*",
        "price = 5 AND",
        "\ud800 = 1",
    ],
)
def test_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        matched(text)


@pytest.mark.parametrize(
    "text",
    [
        "x" * (TEXT_BYTES_MAX + 1),
        "(" * (DEPTH_MAX + 1) + "price = 1" + ")" * (DEPTH_MAX + 1),
        "(" * 5000,
        "NOT " * 3000 + "sold",
        "price = " + "-" * 8000 + "1",
        "price = " + "- " * 8000 + "1",
        " OR ".join(["sold"] * 3000),
        f"price IN ({','.join(['1'] * (IN_ITEMS_MAX + 1))})",
        "sold AND " * 1500 + "sold",
        "price " * 2500,
        "[" * 4000,
        "a." * 4000 + "b = 1",
        "NOT(" * 60 + "NOT " * 900 + "sold" + ")" * 60,
    ],
)
def test_what_is_too_large_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse(text)


def test_a_thousand_terms_are_accepted() -> None:
    assert matched(" OR ".join(f"price = {n}" for n in range(500))) == [0]
    assert matched(f"price IN ({','.join(map(str, range(3000)))})") == [0]
    assert matched("(" * 40 + "sold" + ")" * 40) == [0]


def test_a_refusal_says_where_and_what_to_do() -> None:
    with pytest.raises(Invalid, match=r"position=`10`"):
        parse("sold AND lower(country) = 'se'")
    with pytest.raises(Invalid, match=r"known=`.*country, maker, maker.name"):
        matched("colour = 'red'")
    with pytest.raises(Invalid, match="price, which is number or text, with boolean"):
        matched("price = true")


def test_the_same_text_is_parsed_once() -> None:
    assert parse("price < 50") is parse("price < 50")


def test_large_whole_numbers_stay_exact() -> None:
    items: list[object] = [{"n": 2**53}, {"n": 2**53 + 1}, {"n": -(2**63)}]
    assert matched("n = 9007199254740993", items) == [1]
    assert matched("n < -9007199254740993", items) == [2]
    assert matched("n = 18446744073709551615", [{"n": 2**64 - 1}]) == [0]


def test_a_growing_set_reads_only_what_is_new() -> None:
    documents = [orjson.dumps({"n": n}) for n in range(200)]
    asked: list[tuple[int, int]] = []

    def read(start: int, stop: int) -> list[bytes]:
        asked.append((start, stop))
        return documents[start:stop]

    found = Columns(read, 64, predicates_max=4, columns_max=4)
    for size in (10, 64, 65, 200, 130):
        mask = found.mask(parse("n >= 3"), size)
        assert int(sum(int(word).bit_count() for word in mask)) == size - 3
    assert asked == [(0, 10), (0, 64), (64, 65), (64, 128), (128, 192), (192, 200)]


def test_masks_and_columns_are_bounded() -> None:
    documents = [orjson.dumps({f"f{n}": 1 for n in range(20)})] * 64
    found = Columns(lambda start, stop: documents[start:stop], 64, predicates_max=3, columns_max=5)
    for n in range(20):
        assert int(found.mask(parse(f"f{n} = 1"), 64)[0]) == 2**64 - 1
    assert len(found._masks) == 3
    assert len(found._blocks[0]._columns) == 5
