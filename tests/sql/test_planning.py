"""What is done before DuckDB plans a statement: found in its text where it is right, and left alone where it is not."""

import json
from collections.abc import Callable
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from lakehouse.core.types import Hit
from lakehouse.sql import hits
from lakehouse.sql.errors import QueryFailed
from lakehouse.sql.planning import Lookup, Plan
from sql_lake import Lake, products

SEARCH = "vector_search('items', $q, k := 3)"


def plan(sql: str, parameters: Any = None) -> Plan:
    row = duckdb.execute("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchone()
    assert row is not None
    tree = json.loads(row[0])
    assert not tree["error"], tree
    return Plan(tree["statements"][0], parameters)


# --- calls that name everything themselves


@pytest.mark.parametrize(
    ("arguments", "parameters", "expected"),
    [
        ("'i', 'p5'", None, ("i", 10, None, "p5")),
        ("'i', $q, k := 3", {"q": [1.0, 2]}, ("i", 3, None, [1.0, 2])),
        ("?, ?, k := ?, filter := ?", ["i", "p5", 3, "n > 1"], ("i", 3, "n > 1", "p5")),
        ("'i', $1::FLOAT[2], filter := NULL", [[1.5, 2]], ("i", 10, None, [1.5, 2])),
    ],
)
def test_a_call_with_literals_and_parameters_is_foreseen(
    arguments: str, parameters: Any, expected: tuple[Any, ...]
) -> None:
    (call,) = plan(f"SELECT * FROM vector_search({arguments})", parameters).calls()
    assert (call.index, call.k, call.filter, call.query) == expected


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [
        ("'i', q.v", None),
        ("'i', $q", {"other": [1]}),
        ("'i', $q", {"q": []}),
        ("'i', $q", {"q": [1 << 40]}),
        ("'i', $q", {"q": [True]}),
        ("'i', $q", {"q": 5}),
        ("'i', NULL", None),
        ("$1, [1, 2]", [None]),
        ("'i', [1, 2], k := 1 + 2", None),
        ("'i', [1, 2], k := $1", [2.5]),
        ("'i', [1, 2], most := 3", None),
        ("'i', (SELECT [1, 2])", None),
        ("'i' || 'j', [1, 2]", None),
    ],
)
def test_a_call_that_only_the_statement_can_evaluate_is_not(arguments: str, parameters: Any) -> None:
    assert plan(f"SELECT * FROM t q, vector_search({arguments})", parameters).calls() == []


def test_many_calls_are_left_to_the_statement() -> None:
    nine = " UNION ALL ".join(["SELECT id FROM vector_search('i', 'p5')"] * 9)
    assert plan(nine).calls() == []


# --- datasets joined to the ids of a call


@pytest.mark.parametrize(
    "source",
    [
        f"{SEARCH} v JOIN products p ON p.id = v.id",
        f"products p JOIN {SEARCH} v ON v.ID = P.Id AND p.price > 3",
        f"{SEARCH} v JOIN products p USING (id)",
        f"{SEARCH} v LEFT JOIN products p ON p.id = v.id",
        f"products p SEMI JOIN {SEARCH} v ON p.id = v.id",
        f"products p, {SEARCH} v WHERE p.price > 1 AND p.id = v.id",
        f"(others o LEFT JOIN {SEARCH} v ON o.id = v.id) JOIN products p ON p.id = v.id",
        f"{SEARCH} JOIN products ON products.id = vector_search.id",
    ],
)
def test_a_dataset_joined_to_the_ids_is_read_for_them(source: str) -> None:
    found = plan(f"SELECT 1 FROM {source}").lookup()
    assert found is not None
    assert (found.table.lower(), found.column) == ("products", "id")


@pytest.mark.parametrize(
    "source",
    [
        f"products p LEFT JOIN {SEARCH} v ON p.id = v.id",
        f"products p FULL JOIN {SEARCH} v ON p.id = v.id",
        f"products p ANTI JOIN {SEARCH} v ON p.id = v.id",
        f"products p JOIN {SEARCH} v ON p.id = v.id OR p.price > 1",
        f"products p JOIN {SEARCH} v ON p.id <> v.id",
        f"products p JOIN {SEARCH} v ON p.id || 'x' = v.id",
        f"products p JOIN {SEARCH} v ON p.id = v.metadata",
        f"products p JOIN {SEARCH} v(a, b, c) ON p.id = v.id",
        f"products p(id) JOIN {SEARCH} v ON p.id = v.id",
        f"products p TABLESAMPLE 10% JOIN {SEARCH} v ON p.id = v.id",
        f"products p JOIN {SEARCH} v ON p.id = v.id, products x",
        f"products p JOIN {SEARCH} v ON p.id = v.id JOIN {SEARCH} w ON w.id = v.id",
        f"(SELECT * FROM products) p JOIN {SEARCH} v ON p.id = v.id",
        f"{SEARCH} v LEFT JOIN (others o LEFT JOIN products p ON true) ON p.id = v.id",
        f"others o LEFT JOIN products p ON true, {SEARCH} v WHERE p.id = v.id",
        f"{SEARCH} v CROSS JOIN products p",
    ],
)
def test_a_dataset_of_which_other_rows_may_be_in_the_answer_is_read_whole(source: str) -> None:
    assert plan(f"SELECT 1 FROM {source}").lookup() is None


def test_a_common_table_expression_like_the_dataset_is_none() -> None:
    sql = f"WITH products AS (SELECT 1) SELECT 1 FROM products p JOIN {SEARCH} v ON p.id = v.id"
    assert plan(sql).lookup() is None
    other = f"WITH a AS (SELECT 1) SELECT 1 FROM products p JOIN {SEARCH} v ON p.id = v.id"
    assert plan(other).lookup() == Lookup("products", "id")


# --- vectors of fixed size


def test_the_column_is_found_where_the_text_has_it() -> None:
    sql = (
        "SELECT q.n, 'é', v.id FROM t q, LATERAL (SELECT * FROM vector_search('i', \"q\".\"Emb\", k := 1)) v"
    )
    found = plan(sql).rows(sql)
    assert found is not None
    assert (found.table, sql.encode()[found.start : found.end]) == ("t", b"Emb")
    assert len(found.hidden.encode()) == 3


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM t q, vector_search('i', q.emb) v",
        "SELECT q.* FROM t q, vector_search('i', q.emb) v",
        "SELECT COLUMNS('e.*') FROM t q, vector_search('i', q.emb) v",
        "SELECT q FROM t q, vector_search('i', q.emb) v",
        "SELECT to_json(q) FROM t q, vector_search('i', q.emb) v",
        "SELECT #1 FROM t q, vector_search('i', q.emb) v",
        "SELECT v.id FROM t q, vector_search('i', emb) v",
        "SELECT v.id FROM t q, vector_search('i', q.emb || [1]) v",
        "SELECT v.id FROM t q, vector_search('i', q. /* a */ emb) v",
        "SELECT v.id FROM t q, vector_search('i', q.e) v",
        "SELECT v.id FROM t q, t r, vector_search('i', q.emb) v",
        "SELECT v.id FROM (SELECT * FROM t) q, vector_search('i', q.emb) v",
    ],
)
def test_a_column_beside_it_would_show(sql: str) -> None:
    assert plan(sql).rows(sql) is None


# --- answers


@pytest.fixture(scope="module")
def fixed(lake: Lake) -> str:
    """`products` with vectors of fixed size, one of them twice and one missing."""
    table = products(40)
    vectors = [*table["embedding"].to_pylist()[:38], [3.0, 1.0, 0.0], None]
    column = pa.array(vectors, pa.list_(pa.float32(), 3))
    kinds = [
        ("id", "VARCHAR"),
        ("name", "VARCHAR"),
        ("price", "DOUBLE"),
        ("day", "DATE"),
        ("embedding", "FLOAT[3]"),
    ]
    lake.ingested("fixed", table.set_column(4, "embedding", column), kinds)
    return "fixed"


def explained(lake: Lake, sql: str, parameters: Any = None) -> str:
    given = b"" if parameters is None else json.dumps(parameters).encode()
    return str(lake.json(sql, parameters=given, explain=True)["profile"]["plan"])


@pytest.mark.parametrize(
    ("join", "rows"),
    [
        ("JOIN fixed p ON p.id = v.id", 3),
        ("LEFT JOIN fixed p ON p.id = v.id", 3),
        ("JOIN fixed p USING (id) WHERE p.price > 52", 2),
        ("RIGHT JOIN fixed p ON p.id = v.id", 40),
        ("FULL JOIN fixed p ON p.id = v.id", 40),
    ],
)
def test_a_join_reads_what_it_needs_and_answers_the_same(
    lake: Lake, fixed: str, join: str, rows: int
) -> None:
    found = "SELECT p.name, v.distance FROM vector_search('items', {}, k := 3) v {} ORDER BY ALL"
    early = lake.rows(found.format("$q", join), {"q": [35, 1, 0]})
    late = lake.rows(found.format("(SELECT [35, 1, 0])", join))
    assert early == late
    assert len(early) == rows
    lookup = 'fixed: only rows are read whose "id" is one of these hits'
    told = explained(lake, found.format("$q", join), {"q": [35, 1, 0]})
    assert (lookup in told) is (rows < 40)
    assert "3 hits, found before the statement ran" in told
    assert "before the statement" not in explained(lake, found.format("(SELECT [35, 1, 0])", join))


@pytest.mark.parametrize(
    "query", ["[35, 1, 0]", "[35.0, 1.0, 0]::FLOAT[3]", "'p35'", "[3.5e1, 1, -0]::DOUBLE[]"]
)
def test_literals_are_searched_for_before_the_statement_runs(lake: Lake, fixed: str, query: str) -> None:
    sql = (
        f"SELECT p.id FROM vector_search('items', {query}, k := 2) v JOIN fixed p ON p.id = v.id ORDER BY ALL"
    )
    assert "2 hits, found before the statement ran" in explained(lake, sql)
    assert lake.rows(sql) == lake.rows(sql.replace(query, f"(SELECT {query})"))


def test_ids_with_quotes_are_looked_up(lake: Lake, fixed: str) -> None:
    lake.index("odd", ["it's", 'p"5', "p7"], np.eye(3, dtype=np.float32))
    rows = lake.rows("SELECT p.id FROM vector_search('odd', [1, 1, 1]) v JOIN fixed p ON p.id = v.id")
    assert rows == [["p7"]]


def test_equal_vectors_of_fixed_size_are_asked_for_once(
    lake: Lake, fixed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    search: Callable[[bytes], Any] = lake.service.search

    async def counted(payload: bytes) -> Any:
        found = await search(payload)
        asked.append(len(found))
        return found

    monkeypatch.setattr(lake.service, "search", counted)
    sql = "SELECT q.id, v.id FROM fixed q, LATERAL (SELECT * FROM vector_search('items', q.embedding, k := 1)) v"
    rows = lake.rows(f"{sql} ORDER BY q.price")
    assert rows == [*([f"p{n}", f"p{n}"] for n in range(38)), ["p38", "p3"]]
    assert asked == [38]
    plan = explained(lake, sql)
    assert 'fixed: "embedding" is searched for row by row' in plan
    assert "DELIM" not in plan
    assert "ǁ" not in plan


def test_the_place_of_a_mistake_stays_where_it_is(lake: Lake, fixed: str) -> None:
    sql = "SELECT q.nix FROM fixed q, vector_search('items', q.embedding, k := 1) v"
    with pytest.raises(Exception, match="line 1, column 8") as caught:
        lake.rows(sql)
    assert "ǁ" not in str(caught.value)


# --- hits between processes


def test_hits_arrive_as_they_were_sent() -> None:
    sent = [[Hit("a", 0.5, b'{"n":1}'), Hit("é", float("nan"), b"")], [], [Hit("c", 1.0, b"")]]
    found = hits.received(hits.packed(sent))
    assert isinstance(found, hits.Found)
    assert found.counts.tolist() == [2, 0, 1]
    assert bytes(found.ids) == "aéc".encode()
    assert found.id_lengths.tolist() == [1, 2, 1]
    assert found.metadata_lengths.tolist() == [7, hits.ABSENT, hits.ABSENT]
    assert bytes(found.metadata) == b'{"n":1}'
    assert hits.received(hits.refused("invalid", "why")) == hits.Refused("invalid", "why")


def test_parts_that_do_not_fit_their_lengths_are_refused() -> None:
    whole = hits.with_parts({"a": 1}, [b"xy", None, b""])
    assert hits.split_parts(whole) == ({"a": 1}, [b"xy", None, b""])
    with pytest.raises(ValueError, match="not as long"):
        hits.split_parts(whole + b"z")


def test_a_parameter_that_does_not_fit_its_cast_is_refused_as_ever(lake: Lake) -> None:
    assert lake.rows("SELECT id FROM vector_search('items', $q::FLOAT[3], k := 1)", {"q": [7, 1, 0]}) == [
        ["p7"]
    ]
    with pytest.raises(QueryFailed, match="length 3 to array with length 2"):
        lake.rows("SELECT id FROM vector_search('items', $q::FLOAT[2], k := 1)", {"q": [7, 1, 0]})


def test_what_is_found_early_keeps_its_numbers_and_metadata(lake: Lake) -> None:
    sql = "SELECT id, distance, metadata, metadata ->> 'n' FROM vector_search('items', {}, k := 5)"
    assert lake.rows(sql.format("$q"), {"q": [33.37, 1.1, 0.3]}) == lake.rows(
        sql.format("(SELECT [33.37, 1.1, 0.3])")
    )
