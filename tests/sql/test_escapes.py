"""Nothing a statement says reaches a file, a socket, a process or a setting outside its own memory.

Each attempt runs against the real service.  It may end in a clear error or in a harmless answer; in either case
nothing outside was read, written, removed or called, and the next query works.
"""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from lakehouse.core.errors import LakehouseError
from lakehouse.sql import statement
from lakehouse.sql.errors import QueryFailed
from sql_lake import Lake

SECRET = "s3cr3t-c0ffee"

ATTEMPTS = [
    # reading files through FROM
    "SELECT * FROM read_text('{secret}')",
    "SELECT * FROM read_blob('{secret}')",
    "SELECT * FROM read_csv('{secret}')",
    "SELECT * FROM read_csv_auto('{secret}')",
    "SELECT * FROM read_json('{secret}')",
    "SELECT * FROM read_json_auto('{secret}')",
    "SELECT * FROM read_json_objects('{secret}')",
    "SELECT * FROM read_ndjson('{secret}')",
    "SELECT * FROM read_ndjson_objects('{secret}')",
    "SELECT * FROM read_parquet('{parquet}')",
    "SELECT * FROM parquet_scan('{parquet}')",
    "SELECT * FROM parquet_metadata('{parquet}')",
    "SELECT * FROM parquet_schema('{parquet}')",
    "SELECT * FROM parquet_kv_metadata('{parquet}')",
    "SELECT * FROM sniff_csv('{secret}')",
    "SELECT * FROM read_duckdb('{secret}')",
    "SELECT * FROM glob('{home}/*')",
    "SELECT * FROM '{secret}'",
    'SELECT * FROM "{parquet}"',
    "FROM '{secret}'",
    "TABLE '{parquet}'",
    "SELECT * FROM 'file://{secret}'",
    "SELECT * FROM '/proc/self/environ'",
    "SELECT * FROM read_text('/proc/self/environ')",
    "SELECT * FROM read_text('/proc/1/environ')",
    "SELECT * FROM read_text('/etc/passwd')",
    # the same, deeper
    "SELECT (SELECT content FROM read_text('{secret}'))",
    "WITH t AS (SELECT * FROM read_text('{secret}')) SELECT * FROM t",
    "WITH RECURSIVE t AS (SELECT 1 UNION ALL SELECT 1 FROM read_text('{secret}')) SELECT * FROM t",
    "SELECT 1 WHERE EXISTS (FROM read_text('{secret}'))",
    "SELECT * FROM products, LATERAL (SELECT * FROM read_text('{secret}')) x",
    "SELECT * FROM range(3) t(i) JOIN read_text('{secret}') r ON true",
    "SELECT 1 UNION ALL SELECT content FROM read_text('{secret}')",
    "SELECT list(x) FROM (VALUES ((SELECT content FROM read_text('{secret}')))) v(x)",
    "SELECT * FROM (PIVOT (SELECT * FROM read_text('{secret}')) ON filename USING count(*))",
    "SELECT count(*) FILTER (WHERE (SELECT true FROM read_text('{secret}'))) FROM products",
    "SELECT sum(1) OVER (ORDER BY (SELECT content FROM read_text('{secret}')))",
    "SELECT * FROM products ORDER BY (SELECT content FROM read_text('{secret}'))",
    "SELECT * FROM products LIMIT (SELECT length(content) FROM read_text('{secret}'))",
    "DESCRIBE SELECT * FROM read_parquet('{parquet}')",
    "SUMMARIZE SELECT * FROM read_text('{secret}')",
    "SELECT * FROM (SUMMARIZE '{parquet}')",
    # SQL inside SQL
    "SELECT * FROM query('SELECT * FROM read_text(''{secret}'')')",
    "SELECT * FROM query_table('{parquet}')",
    "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT * FROM read_text(''{secret}'')'))",
    "SELECT * FROM python_map_function(NULL)",
    "SELECT * FROM arrow_scan(1, 2, 3)",
    "SELECT * FROM pandas_scan(140000000)",
    "SELECT * FROM seq_scan('products')",
    # other statements, alone and hidden
    "COPY (SELECT 1) TO '{out}/x.csv'",
    "COPY products TO '{out}/x.parquet'",
    "WITH x AS (COPY (SELECT 1) TO '{out}/x.csv') SELECT * FROM x",
    "WITH x AS (INSERT INTO products VALUES (1)) SELECT * FROM x",
    "SELECT 1; COPY (SELECT 1) TO '{out}/x.csv'",
    "SELECT 1; SELECT 2",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{out}/x.csv'",
    "EXPLAIN SELECT 1",
    "EXPORT DATABASE '{out}/db'",
    "IMPORT DATABASE '{home}'",
    "ATTACH '{out}/x.db'",
    "ATTACH '{secret}' AS s (READ_ONLY)",
    "DETACH memory",
    "USE memory",
    "CREATE TABLE t AS SELECT 1",
    "CREATE TABLE '{out}/t' (a INT)",
    "CREATE OR REPLACE VIEW products AS SELECT 1",
    "CREATE MACRO m() AS TABLE SELECT * FROM read_text('{secret}')",
    "CREATE SECRET (TYPE s3, KEY_ID 'a', SECRET 'b')",
    "CREATE FUNCTION f() AS 1",
    "CREATE SEQUENCE s",
    "DROP VIEW products",
    "ALTER VIEW products RENAME TO q",
    "INSERT INTO products VALUES (1)",
    "UPDATE products SET id = '1'",
    "DELETE FROM products",
    "TRUNCATE products",
    "BEGIN; SELECT 1; COMMIT",
    "VACUUM",
    "CHECKPOINT",
    "FORCE CHECKPOINT",
    "INSTALL httpfs",
    "LOAD httpfs",
    "LOAD '{out}/x.duckdb_extension'",
    "FORCE INSTALL '{out}/x.duckdb_extension'",
    "UPDATE EXTENSIONS",
    "CALL duckdb_settings()",
    "PRAGMA database_list",
    "PRAGMA enable_profiling='json'",
    "SET enable_external_access = true",
    "SET GLOBAL allowed_paths = ['/']",
    "SET lock_configuration = false",
    "RESET memory_limit",
    "SET VARIABLE x = (SELECT content FROM read_text('{secret}'))",
    "PREPARE p AS SELECT * FROM read_text('{secret}')",
    "EXECUTE p",
    "DEALLOCATE p",
    "COMMENT ON VIEW products IS 'x'",
    "SHOW TABLES",
    "SHOW ALL TABLES",
    "SHOW DATABASES",
    # the process and its settings
    "SELECT getenv('PATH')",
    "SELECT getvariable('x')",
    "SELECT current_setting('temp_directory')",
    "SELECT current_setting('allowed_paths')",
    "SELECT * FROM duckdb_settings()",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM duckdb_databases()",
    "SELECT * FROM duckdb_views()",
    "SELECT * FROM duckdb_functions()",
    "SELECT * FROM duckdb_logs()",
    "SELECT * FROM pragma_database_list",
    "SELECT * FROM which_secret('s3://x', 's3')",
    "SELECT * FROM information_schema.tables",
    "SELECT * FROM pg_catalog.pg_class",
    "SELECT * FROM system.information_schema.columns",
    "SELECT * FROM memory.main.products",
    "SELECT * FROM sqlite_master",
    # a name that hides one of DuckDB's own, where DuckDB does not see it yet
    (
        "WITH RECURSIVE sqlite_master AS (SELECT sql FROM sqlite_master UNION ALL SELECT sql FROM sqlite_master "
        "WHERE false) SELECT sqlite_master.* FROM sqlite_master, products"
    ),
    (
        "WITH RECURSIVE pg_settings AS (SELECT setting FROM pg_settings UNION ALL SELECT setting FROM pg_settings "
        "WHERE false) SELECT pg_settings.* FROM pg_settings, products"
    ),
    (
        "WITH RECURSIVE duckdb_views AS (SELECT sql FROM (SELECT sql FROM duckdb_views) UNION "
        "SELECT sql FROM duckdb_views WHERE false) SELECT duckdb_views.* FROM duckdb_views, products"
    ),
    (
        'WITH RECURSIVE "{parquet}" AS (SELECT * FROM "{parquet}" UNION ALL SELECT * FROM "{parquet}" '
        'WHERE false) SELECT * FROM "{parquet}"'
    ),
    (
        "WITH RECURSIVE Duckdb_Views AS (SELECT 1 AS sql UNION ALL SELECT sql FROM (WITH x AS MATERIALIZED "
        "(SELECT sql FROM duckdb_views) SELECT sql FROM x) WHERE false) SELECT * FROM duckdb_views, products"
    ),
    "WITH pg_class AS (SELECT 1) SELECT * FROM (SELECT * FROM pg_class), products",
    "SELECT * FROM enable_logging()",
    "SELECT * FROM checkpoint()",
    "SELECT write_log('x', log_type := 'y')",
    "SELECT nextval('s')",
    "SELECT setseed(0.5)",
    "SELECT sleep_ms(600000)",
    "SELECT pg_sleep(600)",
    "SELECT _vs('items', [1.0], NULL, 1, NULL)",
    # the network
    "SELECT * FROM read_csv('http://127.0.0.1:{port}/x.csv')",
    "SELECT * FROM 'http://127.0.0.1:{port}/x.parquet'",
    "SELECT * FROM 's3://bucket/x.parquet'",
    "ATTACH 'http://127.0.0.1:{port}/x.db'",
    "SELECT * FROM postgres_scan('host=127.0.0.1 port={port}', 'public', 't')",
    # names that reach further than a dataset
    'SELECT * FROM "../../etc/passwd"',
    'SELECT * FROM "products@v1@v2"',
    'SELECT * FROM "products@v99999999999999999999"',
    'SELECT * FROM "_catalog/manifests/products"',
    "SELECT * FROM \"x'); COPY (SELECT 1) TO '{out}/x.csv'; --\"",
    'SELECT * FROM "x"" AS SELECT 1; --"',
    "SELECT * FROM vector_search('../../etc/passwd', [1.0])",
    "SELECT * FROM vector_search('items', '{secret}')",
    "SELECT * FROM vector_search('items', [1, 2, 3], filter := '1=1); DROP TABLE x; --')",
    "SELECT * FROM vector_search('items', [1, 2, 3], filter := '(SELECT content FROM read_text(''{secret}''))')",
    # text that is hardly SQL
    "",
    ";",
    ";;;",
    "-- nothing",
    "/* SELECT 1 */",
    "\0SELECT 1",
    "SELECT 1\0; COPY (SELECT 1) TO '{out}/x.csv'",
    "SELECT '\ud800'",
    "SEL\u0415CT 1",
]


class Outside:
    """What no attempt may touch."""

    def __init__(self, lake: Lake, home: Path) -> None:
        self.home = home
        self.secret = home / "secret.txt"
        self.secret.write_text(SECRET)
        self.parquet = next((lake.home / "data" / "files").iterdir())
        self.out = home / "out"
        self.out.mkdir()
        self.calls: list[object] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                self.calls.append(self._listener.accept())
            except OSError:
                return

    def close(self) -> None:
        self._listener.close()

    def fill(self, sql: str) -> str:
        for name in ("secret", "parquet", "out", "home", "port"):
            sql = sql.replace("{" + name + "}", str(getattr(self, name)))
        return sql


@pytest.fixture(scope="module")
def outside(lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    outside = Outside(lake, tmp_path_factory.mktemp("outside"))
    yield outside
    outside.close()


@pytest.fixture(scope="module", autouse=True)
def _unchanged(lake: Lake) -> Iterator[None]:
    before = lake.fingerprint()
    yield
    assert lake.fingerprint() == before


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=[f"{j:03}" for j in range(len(ATTEMPTS))])
def test_an_escape_reads_and_writes_nothing_outside(lake: Lake, outside: Outside, attempt: str) -> None:
    sql = outside.fill(attempt)
    error = None
    try:
        shown = lake.execute(sql, timeout_s=5.0)[1].decode(errors="replace")
    except LakehouseError as refusal:
        error, shown = refusal, refusal.message
    if error is not None:
        assert isinstance(error, QueryFailed), error
        assert error.kind in ("invalid", "dataset"), error
        assert len(shown) > 10
        assert "Traceback" not in shown
    assert str(lake.home) not in shown.replace(str(outside.parquet), "")
    assert SECRET not in shown
    assert "root:" not in shown
    assert not list(outside.out.iterdir())
    assert outside.secret.read_text() == SECRET
    assert not outside.calls
    assert not Path("/tmp/lakehouse-escape").exists()


def test_no_view_of_duckdbs_own_can_be_hidden() -> None:
    views = duckdb.execute(
        "SELECT view_name FROM duckdb_views() WHERE internal AND schema_name IN ('main', 'pg_catalog')"
    )
    assert {name for (name,) in views.fetchall()} == statement.OWN_NAMES


def test_a_nul_is_refused_and_not_taken_for_the_end(lake: Lake) -> None:
    with pytest.raises(QueryFailed, match="NUL"):
        lake.execute("SELECT 1 AS a\0 FROM products")


def test_there_are_enough_attempts() -> None:
    assert len(set(ATTEMPTS)) == len(ATTEMPTS) >= 60


def test_after_all_of_it_queries_still_work(lake: Lake) -> None:
    assert lake.rows("SELECT count(*) FROM products") == [[120]]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT range FROM range(2)",
        "SELECT * FROM generate_series(1, 2)",
        "SELECT unnest([1, 2])",
        "SELECT value FROM json_each('[1, 2]')",
        "SELECT id FROM json_tree('[1]')",
        "FROM products LIMIT 2",
        "VALUES (1), (2)",
        "SELECT 1 UNION SELECT 2",
        "WITH a AS (SELECT 1 AS x), b AS (SELECT x FROM a UNION ALL SELECT 2) SELECT * FROM b",
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 2) SELECT * FROM t",
        "SELECT list_transform([1, 2], lambda x: x + 1) AS l FROM range(2)",
        "SELECT * FROM (PIVOT products ON id IN ('p1') USING max(price)) LIMIT 2",
        "SELECT price FROM products WINDOW w AS (ORDER BY id) QUALIFY row_number() OVER w <= 2",
        "SELECT DISTINCT ON (price > 3) price FROM products",
        "SELECT * FROM products USING SAMPLE 2 ROWS",
        "SELECT #1 FROM range(2)",
        "SELECT CASE WHEN range BETWEEN 0 AND 5 THEN 'a' COLLATE NOCASE END FROM range(2)",
        "SELECT p.id FROM products p SEMI JOIN products q USING (id) LIMIT 2",
        "SELECT count(*) FROM products GROUP BY GROUPING SETS ((), (price > 3, price < 0)) LIMIT 2",
        "SELECT COLUMNS('i.*') FROM products LIMIT 2",
        "SELECT * EXCLUDE (id) REPLACE (1 AS price) FROM products LIMIT 2",
        "SELECT ts FROM (SELECT TIMESTAMPTZ '2020-01-01 00:00:00Z' AT TIME ZONE 'Europe/Berlin' AS ts), range(2)",
    ],
)
def test_ordinary_selects_are_not_refused(lake: Lake, sql: str) -> None:
    assert lake.json(sql)["row_count"] >= 1
