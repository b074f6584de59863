"""A worker does what a query will do before one comes, while nobody waits.

A forked process meets each page of code and memory for the first time, and the kernel stops it each time: of the 20 ms
that a query over an index and a dataset takes, 8 ms were that.  What this module does not do: read anything but
files of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from lakehouse.core.types import Hit
from lakehouse.sql import encode, hits, statement
from lakehouse.sql.ask import split_header
from lakehouse.sql.encode import Column
from lakehouse.sql.formats import Format
from lakehouse.sql.planning import Plan
from lakehouse.sql.searching import Searches
from lakehouse.sql.text import without_semicolon
from lakehouse.sql.wire import Channel, Kind
from lakehouse.sql.worker import Engine

EXAMPLE_VECTORS, EXAMPLE_DIMENSION, EXAMPLE_ROWS, EXAMPLE_HITS = 8, 384, 32_768, 10
"""Sizes of what is rehearsed: the memory it takes lies ready then, which the kernel need not clear page by page."""
REHEARSED_LATERAL = f"""
SELECT q.id, s.id, s.distance
FROM (SELECT id, v::FLOAT[{EXAMPLE_DIMENSION}] AS v FROM read_parquet([?])) AS q,
LATERAL (SELECT * FROM vector_search('i', q.v, k := {EXAMPLE_HITS})) AS s
"""
REHEARSED_JOIN = f"""
SELECT p.id, p.section, p.description, s.distance
FROM vector_search('i', [1.0], k := {EXAMPLE_HITS}) AS s JOIN (
    SELECT * FROM read_parquet([?]) WHERE list_contains(['example-1', 'example-2', 'example-30000'], id)
) AS p ON p.id = s.id ORDER BY s.distance
"""


@dataclass(frozen=True, slots=True)
class Examples:
    """Files of our own, to rehearse with."""

    vectors: Path
    rows: Path

    @classmethod
    def under(cls, folder: Path) -> "Examples":
        """Where they are."""
        return cls(folder / "example-vectors.parquet", folder / "example-rows.parquet")

    def write(self) -> None:
        """Rows of the usual kinds, and a few vectors of a usual length."""
        rows, dimension = EXAMPLE_ROWS, EXAMPLE_DIMENSION
        table = pa.table(
            {
                "id": [f"example-{j * 7919 % rows}" for j in range(rows)],
                "section": [f"section-{j % 50}" for j in range(rows)],
                "description": [
                    f"{j * 104_729 % 1_000_003} of what a row may say of itself" for j in range(rows)
                ],
            }
        )
        pq.write_table(table, self.rows, compression="zstd")
        vectors = [[float(row + j) for j in range(dimension)] for row in range(EXAMPLE_VECTORS)]
        queries = pa.table(
            {"id": list(range(EXAMPLE_VECTORS)), "v": pa.array(vectors, pa.list_(pa.float32()))}
        )
        pq.write_table(queries, self.vectors, compression="zstd")


def rehearse(examples: Examples, engine: Engine, cursor: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Parse, search for each row of a table, join to a larger one, encode; of hits that name nothing."""
    for text in (
        "SELECT a FROM b WHERE c > 1",
        "SELECT a, v.id FROM b, c AS d, vector_search('i', d.q, k := 10) v WHERE e IN (1, 2) ORDER BY f LIMIT 3",
        "SELECT p.a FROM vector_search('i', $q, k := 10) v JOIN b p ON p.id = v.id ORDER BY v.distance",
    ):
        printed = cursor.execute("SELECT json_serialize_sql(?::VARCHAR)", [text]).fetchall()[0][0]
        plan = Plan(statement.read(str(printed)).tree, {"q": [1.0]})
        plan.calls(), plan.lookup(), plan.rows(text)
        without_semicolon(text)
    columns = [Column(name, "VARCHAR") for name in ("a", "b", "c", "d")]
    for sql, path, width in ((REHEARSED_LATERAL, examples.vectors, 3), (REHEARSED_JOIN, examples.rows, 4)):
        yield
        engine.search = Searches(_Rehearsed())
        cursor.execute(f"DESCRIBE {sql}", [str(path)]).fetchall()
        reader = cursor.execute(sql, [str(path)]).to_arrow_reader(encode.BATCH_ROWS)
        form = Format.JSON if width == 3 else Format.ARROW
        encoder = encode.ENCODERS[form](columns[:width], lambda data: None)
        encode.write(reader, encoder, 10, 1 << 20)
        encoder.end(False, {})
        engine.search = None


class _Rehearsed(Channel):
    """A parent that finds the same hits whatever is asked."""

    def __init__(self) -> None:
        self._queries = 0

    def send(self, kind: Kind, payload: bytes | memoryview = b"") -> None:
        header, body = split_header(bytes(payload))
        self._queries = len(body) // (4 * orjson.loads(header)["dimension"])

    def receive(self) -> tuple[Kind, bytes]:
        found = [Hit(f"example-{j}", 0.5, b"{}") for j in range(EXAMPLE_HITS)]
        return Kind.HITS, hits.packed([found] * self._queries)
