"""`vector_search` in SQL: alone, joined, per row, by item, with filters, and what it says when it cannot."""

from typing import Any

import numpy as np
import pytest

from lakehouse.core.errors import LakehouseError
from lakehouse.sql.errors import QueryFailed
from sql_lake import Lake


def failure(lake: Lake, sql: str, **options: Any) -> QueryFailed:
    with pytest.raises(LakehouseError) as caught:
        lake.execute(sql, **options)
    assert isinstance(caught.value, QueryFailed), caught.value
    return caught.value


def test_it_gives_id_distance_and_metadata(lake: Lake) -> None:
    answer = lake.json("SELECT * FROM vector_search('items', [5, 1, 0], k := 3)")
    assert [(column["name"], column["type"]) for column in answer["columns"]] == [
        ("id", "VARCHAR"),
        ("distance", "DOUBLE"),
        ("metadata", "JSON"),
    ]
    assert answer["rows"][0] == ["p5", 0.0, {"n": 5}]
    assert {row[0] for row in answer["rows"][1:]} == {"p4", "p6"}


@pytest.mark.parametrize(
    "query",
    [
        "[5, 1, 0]",
        "[5.0, 1.0, 0.0]::FLOAT[3]",
        "[5, 1, 0]::DOUBLE[]",
        "(SELECT embedding FROM products WHERE id = 'p5')",
    ],
)
def test_any_list_of_numbers_is_a_query(lake: Lake, query: str) -> None:
    assert lake.rows(f"SELECT id FROM vector_search('items', {query}, k := 1)") == [["p5"]]


@pytest.mark.parametrize(
    ("placeholder", "given"),
    [("$1", [[5, 1, 0]]), ("?", [[5.0, 1, 0]]), ("$q", {"q": [5, 1, 0]}), ("$q", {"q": "p4"})],
)
def test_a_parameter_is_a_query(lake: Lake, placeholder: str, given: Any) -> None:
    rows = lake.rows(f"SELECT id FROM vector_search('items', {placeholder}, k := 2) ORDER BY id", given)
    assert ["p5"] in rows


def test_the_default_is_ten(lake: Lake) -> None:
    assert len(lake.rows("SELECT id FROM vector_search('items', [50, 1, 0])")) == 10


def test_an_item_is_left_out_of_its_own_neighbours(lake: Lake) -> None:
    assert sorted(lake.rows("SELECT id FROM vector_search('items', 'p5', k := 2)")) == [["p4"], ["p6"]]


def test_a_filter_is_over_metadata(lake: Lake) -> None:
    rows = lake.rows("SELECT id FROM vector_search('items', [5, 1, 0], k := 2, filter := 'n >= 20')")
    assert rows == [["p20"], ["p21"]]


def test_it_joins_a_dataset(lake: Lake) -> None:
    sql = """
        SELECT p.name, v.distance, v.metadata ->> 'n'
        FROM vector_search('items', $1, k := 2) v JOIN products p USING (id) WHERE p.price < 8 ORDER BY v.distance
    """
    assert lake.rows(sql, [[5, 1, 0]])[0] == ["product 5", 0.0, "5"]


def test_one_search_per_row(lake: Lake) -> None:
    sql = """
        SELECT p.id, v.id FROM (SELECT * FROM products WHERE price < 150) p,
            LATERAL (SELECT * FROM vector_search('items', p.embedding, k := 1)) v ORDER BY p.price
    """
    assert lake.rows(sql) == [[f"p{n}", f"p{n}"] for n in range(100)]


def test_one_search_per_row_by_item(lake: Lake) -> None:
    sql = "SELECT p.id, v.id FROM (SELECT * FROM products LIMIT 30) p, vector_search('items', p.id, k := 1) v"
    rows = lake.rows(sql)
    assert len(rows) == 30
    assert all(query != found for query, found in rows)


def test_rows_without_a_query_find_nothing(lake: Lake) -> None:
    sql = """
        SELECT t.n, v.id FROM (VALUES (1, [5, 1, 0]::FLOAT[]), (2, NULL)) t(n, q), vector_search('items', t.q, k := 1) v
    """
    assert lake.rows(sql) == [[1, "p5"]]


def test_a_thousand_rows_ask_in_few_batches(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    search = lake.service.search

    async def counted(payload: bytes) -> Any:
        found = await search(payload)
        asked.append(len(found))
        return found

    monkeypatch.setattr(lake.service, "search", counted)
    sql = "SELECT count(*) FROM range(3000) t(i), vector_search('items', [t.i, 1, 0]::FLOAT[], k := 2) v"
    assert lake.rows(sql) == [[6000]]
    assert sum(asked) == 3000
    assert len(asked) <= 5


def test_a_constant_call_is_searched_once(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    search = lake.service.search

    async def counted(payload: bytes) -> Any:
        asked.append(payload)
        return await search(payload)

    monkeypatch.setattr(lake.service, "search", counted)
    lake.execute("SELECT * FROM vector_search('items', [5, 1, 0], k := 3) v, products", explain=True)
    assert len(asked) == 1


def test_several_indexes_and_counts_in_one_query(lake: Lake) -> None:
    lake.index("others", ["x", "y"], np.array([[0, 1], [1, 0]], np.float32))
    sql = """
        SELECT count(*) FILTER (WHERE length(id) > 1), count(*) FROM (
            SELECT id FROM vector_search('items', [5, 1, 0], k := 4)
            UNION ALL SELECT id FROM vector_search('others', [0, 1], k := 9))
    """
    assert lake.rows(sql) == [[4, 6]]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("'nix', [1, 2, 3]", "no such index"),
        ("'items', [1, 2]", "3 dimensions"),
        ("'items', []", "empty"),
        ("'items', [1, NULL, 2]", "NULL"),
        ("'items', ['NaN'::FLOAT, 1, 1]", "NaN"),
        ("'items', 'nobody'", "no such item"),
        ("'items', [1, 2, 3], filter := 'n >'", "filter"),
        ("NULL, [1, 2, 3]", "index"),
        ("'items'", "vector_search"),
        ("'items', [1, 2, 3], limit := 3", "limit"),
        ("'items', 5", ""),
        ("'items', {'a': 1}", ""),
    ],
)
def test_what_cannot_be_searched_is_told(lake: Lake, call: str, said: str) -> None:
    error = failure(lake, f"SELECT * FROM vector_search({call})")
    assert error.kind == "invalid"
    assert said.lower() in error.message.lower()
    assert "Traceback" not in error.message
    assert ".py" not in error.message


def test_vectors_of_different_dimensions_in_one_column_are_refused(lake: Lake) -> None:
    sql = "SELECT * FROM (VALUES ([1, 2, 3]), ([1])) t(q), vector_search('items', t.q, k := 1) v"
    assert "dimension" in failure(lake, sql).message


def test_without_indexes_it_says_so(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lake.service, "_vectors", None)
    assert "vectors role" in failure(lake, "SELECT * FROM vector_search('items', [1, 2, 3])").message
