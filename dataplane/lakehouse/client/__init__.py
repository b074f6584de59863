"""A client is a list of calls, and two ways of making them: `Client` blocks, `AsyncClient` awaits.

Each call is a value (`Call`: what to send, how to read the answer), built and read by pure functions, from which
the methods of both clients are made, so the two cannot differ.  A retry repeats the very same bytes under the
same idempotency key: a batch that was committed before its answer got lost is not added twice.

    with Client("http://127.0.0.1:3110") as lake:
        lake.create("docs", dimension=3)
        lake.add("docs", ["a", "b"], [[1, 0, 0], [0, 1, 0]], [{"year": 2024}, {"year": 2025}])
        lake.search("docs", [1, 0, 0], k=1, filter="year > 2023").to_pandas()
        lake.ingest("products.csv", "products")
        lake.sql("SELECT count(*) AS n FROM products WHERE price < $most", {"most": 50}).rows()

What it does not do: split batches (the server's limit on a body is the caller's to respect), or cache.
"""

from lakehouse.client.awaiting import AsyncClient, AsyncQuery
from lakehouse.client.blocking import Client, Query
from lakehouse.client.datasets import Dataset, Ingested, IngestOptions, Rejects
from lakehouse.client.resources import Resource
from lakehouse.client.retries import ATTEMPTS_MAX, BACKOFF_FIRST_S, BACKOFF_MAX_S, Retries
from lakehouse.client.sql import QueryStatus, SqlOptions, Table
from lakehouse.client.streams import AsyncBatches, Batches, Exported
from lakehouse.client.vectors import (
    CreateOptions,
    Found,
    FoundBatch,
    IndexInfo,
    Match,
    Page,
    SearchOptions,
    Stored,
    arrow_batch,
)
from lakehouse.client.wire import (
    ARROW,
    BINARY,
    CHUNK_BYTES,
    CSV,
    JSON,
    NDJSON,
    PARQUET,
    TIMEOUT_S,
    URL_DEFAULT,
    Call,
    Request,
    Upload,
    raised,
    unreachable,
)

__all__ = [
    "ARROW",
    "ATTEMPTS_MAX",
    "BACKOFF_FIRST_S",
    "BACKOFF_MAX_S",
    "BINARY",
    "CHUNK_BYTES",
    "CSV",
    "JSON",
    "NDJSON",
    "PARQUET",
    "TIMEOUT_S",
    "URL_DEFAULT",
    "AsyncBatches",
    "AsyncClient",
    "AsyncQuery",
    "Batches",
    "Call",
    "Client",
    "CreateOptions",
    "Dataset",
    "Exported",
    "Found",
    "FoundBatch",
    "IndexInfo",
    "IngestOptions",
    "Ingested",
    "Match",
    "Page",
    "Query",
    "QueryStatus",
    "Rejects",
    "Request",
    "Resource",
    "Retries",
    "SearchOptions",
    "SqlOptions",
    "Stored",
    "Table",
    "Upload",
    "arrow_batch",
    "raised",
    "unreachable",
]
