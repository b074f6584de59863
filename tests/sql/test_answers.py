"""What a query answers: rows in five forms, limits, parameters, versions, and errors with their place."""

import datetime as dt
import decimal
import io
import json
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from lakehouse.core.errors import LakehouseError
from lakehouse.sql import formats, statement
from lakehouse.sql.errors import QueryFailed
from lakehouse.sql.formats import Format
from sql_lake import Lake, products

FIVE = "SELECT id, price, day FROM products ORDER BY price LIMIT 5"


def failure(lake: Lake, sql: str, **options: Any) -> QueryFailed:
    with pytest.raises(LakehouseError) as caught:
        lake.execute(sql, **options)
    assert isinstance(caught.value, QueryFailed)
    return caught.value


# --- forms


def test_json_has_columns_rows_count_and_truncated(lake: Lake) -> None:
    assert lake.json(FIVE) == {
        "columns": [
            {"name": "id", "type": "VARCHAR"},
            {"name": "price", "type": "DOUBLE"},
            {"name": "day", "type": "DATE"},
        ],
        "rows": [[f"p{n}", n * 1.5, str(dt.date(2019, 4, 14) + dt.timedelta(n))] for n in range(5)],
        "row_count": 5,
        "truncated": False,
    }


def test_ndjson_has_one_object_per_line(lake: Lake) -> None:
    lines = lake.execute(FIVE, format=Format.NDJSON)[1].splitlines()
    assert orjson.loads(lines[1]) == {"id": "p1", "price": 1.5, "day": "2019-04-15"}
    assert len(lines) == 5


def test_csv_tells_null_from_an_empty_string(lake: Lake) -> None:
    sql = "SELECT * FROM (VALUES (1, 'a,\"b\"', NULL), (2, '', 'c\nd')) t(n, s, u)"
    data = lake.execute(sql, format=Format.CSV)[1]
    assert data == b'"n","s","u"\n1,"a,""b""",\n2,"","c\nd"\n'


@pytest.mark.parametrize("form", [Format.ARROW, Format.PARQUET])
def test_arrow_and_parquet_carry_the_types(lake: Lake, form: Format) -> None:
    execution, data = lake.execute(FIVE, format=form)
    table = pa.ipc.open_stream(data).read_all() if form is Format.ARROW else pq.read_table(io.BytesIO(data))
    assert table.schema.types == [pa.string(), pa.float64(), pa.date32()]
    assert table.column("id").to_pylist() == [f"p{n}" for n in range(5)]
    assert execution.columns[2] == {"name": "day", "type": "DATE"}


@pytest.mark.parametrize("form", Format)
def test_an_empty_result_keeps_its_columns(lake: Lake, form: Format) -> None:
    execution, data = lake.execute("SELECT id, price FROM products WHERE false", format=form)
    assert execution.tail is not None
    assert execution.tail.rows == 0
    assert not execution.tail.truncated
    if form is Format.ARROW:
        assert pa.ipc.open_stream(data).read_all().column_names == ["id", "price"]
    elif form is Format.PARQUET:
        assert pl.read_parquet(io.BytesIO(data)).columns == ["id", "price"]
    elif form is Format.CSV:
        assert data == b'"id","price"\n'


@pytest.mark.parametrize("form", Format)
def test_every_format_holds_the_same_rows(lake: Lake, form: Format) -> None:
    sql = "SELECT id, price, embedding FROM products ORDER BY price"
    data = lake.execute(sql, format=form)[1]
    if form is Format.JSON:
        ids = [row[0] for row in orjson.loads(data)["rows"]]
    elif form is Format.NDJSON:
        ids = [orjson.loads(line)["id"] for line in data.splitlines()]
    elif form is Format.CSV:
        ids = pyarrow.csv.read_csv(io.BytesIO(data)).column("id").to_pylist()
    elif form is Format.ARROW:
        ids = pa.ipc.open_stream(data).read_all().column("id").to_pylist()
    else:
        ids = pq.read_table(io.BytesIO(data)).column("id").to_pylist()
    assert ids == [f"p{n}" for n in range(120)]


VALUES: list[tuple[str, object]] = [
    ("true", True),
    ("NULL", None),
    ("1::TINYINT", 1),
    ("18446744073709551615::UBIGINT", 18446744073709551615),
    ("170141183460469231731687303715884105727::HUGEINT", 170141183460469231731687303715884105727),
    ("-170141183460469231731687303715884105727::HUGEINT", -170141183460469231731687303715884105727),
    ("340282366920938463463374607431768211455::UHUGEINT", 340282366920938463463374607431768211455),
    ("sum(9223372036854775807) FROM range(3)", 27670116110564327421),
    (
        "12345678901234567890123456789.123456789::DECIMAL(38, 9)",
        decimal.Decimal("12345678901234567890123456789.123456789"),
    ),
    ("1.10::DECIMAL(5, 2)", decimal.Decimal("1.10")),
    ("0.1::FLOAT", decimal.Decimal("0.1")),
    ("0.1::DOUBLE", decimal.Decimal("0.1")),
    ("'NaN'::DOUBLE", None),
    ("'Infinity'::FLOAT", None),
    ("'a' || chr(0) || 'b\U0001f600\"\\'", 'a\0b\U0001f600"\\'),
    ("DATE '2026-11-21'", "2026-11-21"),
    ("DATE '0044-03-15 (BC)'", "0044-03-15 (BC)"),
    ("DATE 'infinity'", "infinity"),
    ("TIME '10:20:30.5'", "10:20:30.5"),
    ("TIMETZ '10:20:30+02'", "10:20:30+02"),
    ("TIMESTAMP '2026-11-21 10:20:30.123456'", "2026-11-21 10:20:30.123456"),
    ("TIMESTAMP_NS '2026-11-21 10:20:30.123456789'", "2026-11-21 10:20:30.123456789"),
    ("TIMESTAMPTZ '2026-11-21 10:20:30+02'", "2026-11-21 08:20:30+00"),
    ("INTERVAL '1 month 2 days 03:00:00'", "1 month 2 days 03:00:00"),
    ("UUID '00000000-0000-0000-0000-00000000000a'", "00000000-0000-0000-0000-00000000000a"),
    ("'\\x00\\xFFab'::BLOB", "AP9hYg=="),
    ("'0101'::BIT", "0101"),
    ("'b'::ENUM('a', 'b')", "b"),
    ("['b'::ENUM('a]', 'b'), NULL]", ["b", None]),
    ("array_value('b'::ENUM('a', 'b'))", ["b"]),
    ("'x[]'::ENUM('x[]', 'STRUCT(a BIT)')", "x[]"),
    ("'{\"a\": [1, 2.50]}'::JSON", {"a": [1, decimal.Decimal("2.50")]}),
    ("[1, NULL, 3]", [1, None, 3]),
    ("[0.1::FLOAT, NULL, 'NaN'::FLOAT]", [decimal.Decimal("0.1"), None, None]),
    ("[0.5, 0.25]::FLOAT[2]", [decimal.Decimal("0.5"), decimal.Decimal("0.25")]),
    ("NULL::FLOAT[2]", None),
    ("[[1], [], NULL]", [[1], [], None]),
    ("{'a': 1, 'b': {'c': DATE '2020-01-01'}}", {"a": 1, "b": {"c": "2020-01-01"}}),
    ("{'nan': 'NaN'::DOUBLE, 'word': 'NaN'}", {"nan": None, "word": "NaN"}),
    ("MAP {'k': 1}", {"k": 1}),
    ("union_value(n := 2)", {"n": 2}),
    ("[170141183460469231731687303715884105727::HUGEINT]", [170141183460469231731687303715884105727]),
]


@pytest.mark.parametrize(("expression", "expected"), VALUES, ids=[expression for expression, _ in VALUES])
def test_json_values(lake: Lake, expression: str, expected: object) -> None:
    data = lake.execute(f"SELECT {expression}")[1]
    assert json.loads(data, parse_float=decimal.Decimal)["rows"] == [[expected]]


@pytest.mark.parametrize("form", Format)
@pytest.mark.parametrize("expression", [expression for expression, _ in VALUES])
def test_every_type_goes_through_every_format(lake: Lake, expression: str, form: Format) -> None:
    execution, data = lake.execute(f"SELECT {expression}", format=form)
    assert execution.tail is not None
    assert execution.tail.rows == 1
    if form is Format.ARROW:
        pa.ipc.open_stream(data).read_all().validate()
    elif form is Format.PARQUET:
        assert pq.read_table(io.BytesIO(data)).num_rows == 1


def test_columns_of_one_name_stay_apart(lake: Lake) -> None:
    sql = "SELECT 1 AS a, 2 AS a, DATE '2020-01-01' AS a"
    assert lake.json(sql)["rows"] == [[1, 2, "2020-01-01"]]
    assert [column["name"] for column in lake.json(sql)["columns"]] == ["a", "a", "a"]
    assert orjson.loads(lake.execute(sql, format=Format.NDJSON)[1]) == {"a": 1, "a_1": 2, "a_2": "2020-01-01"}
    assert lake.execute(sql, format=Format.CSV)[1].splitlines()[0] == b'"a","a_1","a_2"'


def test_order_survives_every_conversion(lake: Lake) -> None:
    rows = lake.rows("SELECT day, {'id': id} FROM products ORDER BY price DESC")
    assert [row[1]["id"] for row in rows] == [f"p{n}" for n in reversed(range(120))]


# --- limits


@pytest.mark.parametrize("form", Format)
@pytest.mark.parametrize(("limit", "truncated"), [(1, True), (119, True), (120, False), (121, False)])
def test_a_row_limit_cuts_exactly(lake: Lake, form: Format, limit: int, truncated: bool) -> None:
    execution, data = lake.execute("SELECT id FROM products", format=form, row_limit=limit)
    assert execution.tail is not None
    assert (execution.tail.rows, execution.tail.truncated) == (min(limit, 120), truncated)
    if form is Format.JSON:
        assert orjson.loads(data)["truncated"] is truncated
    if form is Format.PARQUET:
        assert (
            pq.read_metadata(io.BytesIO(data)).metadata[b"lakehouse.truncated"]
            == str(truncated).lower().encode()
        )
    if form is Format.ARROW:
        reader, said = pa.ipc.open_stream(data), []
        for _, metadata in _batches(reader):
            said.append(metadata)
        assert (said[-1] is not None) is truncated


def _batches(reader: Any) -> Any:
    while True:
        try:
            yield reader.read_next_batch_with_custom_metadata()
        except StopIteration:
            return


@pytest.mark.parametrize("form", Format)
def test_a_byte_limit_cuts_between_rows(lake: Lake, form: Format) -> None:
    execution, data = lake.execute("SELECT id, name FROM products", format=form, byte_limit=1_000)
    assert execution.tail is not None
    assert execution.tail.truncated
    assert 0 < execution.tail.rows < 120
    if form in (Format.JSON, Format.NDJSON, Format.CSV):
        assert len(data) < 1_200


def test_a_row_over_the_byte_limit_leaves_none(lake: Lake) -> None:
    answer = lake.json("SELECT repeat('x', 10000)", byte_limit=100)
    assert (answer["rows"], answer["truncated"]) == ([], True)


@pytest.mark.parametrize(
    ("option", "value"), [("timeout_s", 0.0), ("timeout_s", 1e9), ("row_limit", 0), ("byte_limit", -1)]
)
def test_limits_that_are_none_are_refused(lake: Lake, option: str, value: float) -> None:
    assert option in failure(lake, "SELECT 1", **{option: value}).message


# --- parameters


@pytest.mark.parametrize(
    ("sql", "parameters", "expected"),
    [
        ("SELECT id FROM products WHERE id = ?", ["p7"], [["p7"]]),
        ("SELECT $2, $1", [1, "b"], [["b", 1]]),
        ("SELECT $n + 1", {"n": 41}, [[42]]),
        ("SELECT $x IS NULL", {"x": None}, [[True]]),
        ("SELECT list_sum($1)", [[1, 2, 3]], [[6]]),
        ("SELECT $d::DATE + 1", {"d": "2020-01-01"}, [["2020-01-02"]]),
        ("SELECT $1", [12345678901234567890123], [[12345678901234567890123]]),
        ("SELECT $1.a", [{"a": True}], [[True]]),
        ("SELECT id FROM products WHERE id = ?", ["' OR 1=1 --"], []),
    ],
)
def test_parameters(lake: Lake, sql: str, parameters: Any, expected: Any) -> None:
    given = json.dumps(parameters).encode()
    assert lake.json(sql, parameters=given)["rows"] == expected


def test_a_missing_parameter_is_named(lake: Lake) -> None:
    assert failure(lake, "SELECT $name", parameters=b'{"other": 1}').kind == "invalid"
    assert failure(lake, "SELECT ?").kind == "invalid"


# --- datasets


def test_a_version_is_named_with_an_at_sign(lake: Lake) -> None:
    counts = 'SELECT (SELECT count(*) FROM "products@v1"), (SELECT count(*) FROM "products@v2"), count(*) FROM products'
    assert lake.rows(counts) == [[100, 120, 120]]
    assert lake.rows('SELECT count(*) FROM "products@v1" o SEMI JOIN products n USING (id)') == [[100]]


def test_an_unknown_version_is_told_with_its_place(lake: Lake) -> None:
    error = failure(lake, 'SELECT *\nFROM "products@v9"')
    assert (error.kind, error.line, error.column) == ("dataset", 2, 6)
    assert "version=`9`" in error.message


def test_a_common_table_expression_hides_a_dataset_only_in_its_scope(lake: Lake) -> None:
    assert lake.rows("WITH products AS (SELECT 1 AS x) SELECT * FROM products") == [[1]]
    assert lake.rows("WITH p AS (SELECT count(*) AS n FROM products) SELECT n FROM p") == [[120]]
    hidden = (
        "SELECT (SELECT count(*) FROM products), (WITH products AS (SELECT 1) SELECT count(*) FROM products)"
    )
    assert lake.rows(hidden) == [[120, 1]]


def test_files_of_different_schemas_are_joined_by_name(lake: Lake) -> None:
    older = products(2).select(["id", "price"])
    newer = products(2, start=2).select(["price", "name", "id"])
    lake.dataset("evolving", older, newer)
    rows = lake.rows("SELECT id, price, name FROM evolving ORDER BY id")
    assert rows == [["p0", 0.0, None], ["p1", 1.5, None], ["p2", 3.0, "product 2"], ["p3", 4.5, "product 3"]]


def test_names_with_anything_in_them(lake: Lake) -> None:
    name = "a \"b' c; ü"
    lake.dataset(name, products(3))
    assert lake.rows(f'SELECT count(*) FROM "{name.replace(chr(34), chr(34) * 2)}"') == [[3]]


def test_a_dataset_whose_object_is_gone_or_no_parquet_says_so(lake: Lake) -> None:
    lake.dataset("damaged", products(3))
    key = lake.call(lake.catalog.manifest("damaged")).objects[0]["key"]
    size = len(lake.call(lake.store.get(key)))
    lake.call(lake.store.put(key, b"x" * size))
    error = failure(lake, "SELECT * FROM damaged")
    assert error.kind in ("dataset", "invalid")
    assert str(lake.home) not in error.message
    lake.dataset("gone", products(3))
    lake.call(lake.store.delete(lake.call(lake.catalog.manifest("gone")).objects[0]["key"]))
    assert "gone" in failure(lake, "SELECT * FROM gone").message


def test_describe_and_summarize_tell_of_a_dataset(lake: Lake) -> None:
    assert [row[:2] for row in lake.rows("DESCRIBE products")][:2] == [["id", "VARCHAR"], ["name", "VARCHAR"]]
    assert lake.rows("SUMMARIZE SELECT price FROM products")[0][0] == "price"


def test_time_zones_and_text_functions_need_no_files(lake: Lake) -> None:
    local = "(TIMESTAMPTZ '2026-07-01 00:00:00Z' AT TIME ZONE 'Europe/Berlin')::VARCHAR"
    sql = f"SELECT {local}, lower('ÄÖ'), 'b' > 'Á' COLLATE de"
    assert lake.rows(sql) == [["2026-07-01 02:00:00", "äö", True]]


def test_random_numbers_differ_between_workers(lake: Lake) -> None:
    seen = {tuple(lake.rows("SELECT random(), uuid()::VARCHAR")[0]) for _ in range(4)}
    assert len(seen) == 4


# --- errors


@pytest.mark.parametrize(
    ("sql", "line", "column", "said"),
    [
        ("SELEC 1", 1, 1, "syntax error"),
        ("SELECT 'ä',\n  ö FROM products", 2, 3, "not found"),
        ("SELECT id\nFROM products\nWHERE nme = 1", 3, 7, 'Candidate bindings: "name"'),
        ("SELECT\n  nope(1)", 2, 3, "does not exist"),
        ("SELECT * FROM nix", 1, 15, "no such dataset"),
        ("SELECT 1 FROM\n read_text('x')", 2, 2, "cannot be used in FROM"),
        ("SELECT 'a'::INTEGER", 1, 11, "could not convert"),
        ("SELECT sum(id) FROM products", 1, 8, "candidate functions"),
        ("SELECT DATE '2020-01-01' AS d, 'x'::INTEGER", 1, 35, "could not convert"),
        ("DESCRIBE\nnix", 2, 1, "no such dataset"),
    ],
)
def test_an_error_says_where_and_gives_the_hint(
    lake: Lake, sql: str, line: int, column: int, said: str
) -> None:
    error = failure(lake, sql)
    assert (error.line, error.column) == (line, column), error.message
    assert f"at line {line}, column {column}" in error.message
    assert said.lower() in error.message.lower()


def test_an_error_in_a_late_row_fails_the_query(lake: Lake) -> None:
    error = failure(lake, "SELECT CASE WHEN i < 5000 THEN '1' ELSE 'x' END::INTEGER FROM range(10000) t(i)")
    assert "could not convert" in error.message


def test_explain_gives_the_plan_and_the_time(lake: Lake) -> None:
    profile = lake.json("SELECT count(*) FROM products WHERE price > 3", explain=True)["profile"]
    assert "READ_PARQUET" in profile["plan"]
    assert profile["seconds"] > 0
    assert profile["operators"]["rows_returned"] == 1


# --- parts


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", Format.JSON),
        ("*/*", Format.JSON),
        ("text/html, application/json;q=0.9, */*;q=0.1", Format.JSON),
        ("text/csv", Format.CSV),
        ("text/csv;q=0.5, application/vnd.apache.arrow.stream", Format.ARROW),
        ("application/x-ndjson", Format.NDJSON),
        ("application/vnd.apache.parquet", Format.PARQUET),
        ("image/png", None),
        ("text/csv;q=0", None),
        ("application/json;q=x, text/csv;q=0.1", Format.CSV),
    ],
)
def test_accept_chooses_the_format(accept: str, form: Format | None) -> None:
    assert formats.chosen(accept) is form


def test_a_kind_of_node_that_nobody_has_looked_at_is_refused() -> None:
    tree = {
        "error": False,
        "statements": [{"node": {"type": "SELECT_NODE", "from_table": {"type": "COPY_QUERY_NODE"}}}],
    }
    with pytest.raises(statement.RefusedError, match="COPY_QUERY_NODE"):
        statement.read(json.dumps(tree))


def test_lines_and_columns_count_characters() -> None:
    sql = "SELECT 'ä'\r\n, é"
    assert statement.line_and_column(sql, len(sql.encode()) - 2) == (2, 3)
    assert statement.line_and_column(sql, 0) == (1, 1)


@pytest.mark.parametrize("sql", ["; SELECT 1", "/* ; */; SELECT 1; -- ;", ";;SELECT 1;;", "SELECT 1\n;\n"])
def test_semicolons_around_the_one_statement_do_not_matter(lake: Lake, sql: str) -> None:
    assert lake.rows(sql) == [[1]]


def test_a_dataset_without_rows_or_files_has_its_columns(lake: Lake) -> None:
    lake.empty("nothing", ("id", "BIGINT"), ("a b", "FLOAT[3]"))
    found = lake.json("SELECT * FROM nothing")
    assert [(column["name"], column["type"]) for column in found["columns"]] == [
        ("id", "BIGINT"),
        ("a b", "FLOAT[3]"),
    ]
    assert found["rows"] == []
    assert lake.rows("SELECT count(*), max(id) FROM nothing") == [[0, None]]


def test_a_plan_and_its_profile_name_datasets_and_no_files(lake: Lake) -> None:
    told = json.dumps(lake.json("SELECT name FROM products WHERE price > 3", explain=True)["profile"])
    assert "products" in told
    assert str(lake.home) not in told


def test_folders_named_as_hive_does_add_no_column(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "year=2020")
    try:
        lake.dataset("products", products(3))
        assert "year" not in lake.json("SELECT * FROM products")["columns"][-1]["name"]
        assert len(lake.json("SELECT * FROM products")["columns"]) == 5
    finally:
        lake.close()
