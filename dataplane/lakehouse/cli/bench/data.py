"""What is measured on: rows, held-out queries, and the exact answers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from lakehouse.core.errors import NotFound
from lakehouse.core.types import Vectors

ROOT = Path(__file__).resolve().parents[4]
FULL = ROOT.parent / "shared" / "data" / "debian-packages.parquet"
SUBSET = ROOT / "examples" / "debian-packages.parquet"
K = 10
TRUTH_CHUNK = 256
"""Queries compared with all rows at a time; 256 × 60,000 distances are 60 MB."""

Rows = npt.NDArray[np.int64]
Truth = Rows | Sequence[Rows]
"""Per query the numbers of the nearest rows."""
FILTER_COLUMN = "installed_size_kib"
FRACTIONS = (0.5, 0.1, 0.01, 0.001)


@dataclass(frozen=True)
class Data:
    """Rows to store, rows held out to search with, and for each of those the nearest stored rows."""

    path: Path
    ids: list[str]
    vectors: Vectors
    metadata: list[bytes]
    queries: Vectors
    truth: Rows

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dimension(self) -> int:
        return int(self.vectors.shape[1])


@dataclass(frozen=True)
class Filter:
    """A predicate that matches a known part of the rows, and the exact answers under it."""

    text: str
    fraction: float
    matched: int
    mask: npt.NDArray[np.bool_]
    truth: list[Rows]


def default_path() -> Path:
    """The full file where it is at hand beside the repository, else the subset in it."""
    for path in (FULL, SUBSET, Path("examples") / SUBSET.name):
        if path.exists():
            return path
    raise NotFound("no data to measure on: pass --file FILE.parquet with columns `id` and `embedding`")


def load(path: Path, rows: int | None, queries: int) -> tuple[Data, list[Filter]]:
    """Every n-th row is held out, so that queries are spread over all of the file."""
    table = pq.read_table(path)
    table = table.slice(0, rows) if rows else table
    queries = min(queries, len(table) // 10)
    held_out = np.zeros(len(table), dtype=np.bool_)
    held_out[np.linspace(0, len(table) - 1, queries).astype(np.int64)] = True
    stored = table.filter(pa.array(~held_out))
    asked = matrix(table.filter(pa.array(held_out)))
    vectors = matrix(stored)
    data = Data(
        path, stored["id"].to_pylist(), vectors, _metadata(stored), asked, nearest(vectors, asked, None)
    )
    return data, list(_filters(stored, data))


def matrix(table: pa.Table) -> Vectors:
    """The embeddings as rows."""
    column = table["embedding"].combine_chunks()
    return np.ascontiguousarray(column.flatten().to_numpy().reshape(len(column), -1), dtype=np.float32)


def _metadata(table: pa.Table) -> list[bytes]:
    columns = [name for name in table.schema.names if name not in ("id", "embedding")]
    return [orjson.dumps(row) for row in table.select(columns).to_pylist()]


def nearest(vectors: Vectors, queries: Vectors, mask: npt.NDArray[np.bool_] | None) -> Rows:
    """Row numbers of the `K` nearest by cosine, exactly; fewer where fewer match."""
    allowed = np.arange(len(vectors)) if mask is None else np.flatnonzero(mask)
    unit = vectors[allowed] / np.linalg.norm(vectors[allowed], axis=1, keepdims=True)
    k = min(K, len(allowed))
    found = []
    for start in range(0, len(queries), TRUTH_CHUNK):
        near = -(queries[start : start + TRUTH_CHUNK] @ unit.T)
        first = np.argpartition(near, k - 1, axis=1)[:, :k]
        order = np.argsort(np.take_along_axis(near, first, axis=1), axis=1)
        found.append(allowed[np.take_along_axis(first, order, axis=1)])
    return np.concatenate(found)


def _filters(table: pa.Table, data: Data) -> "list[Filter]":
    """Thresholds on the size of a package that match the wanted parts of all rows as nearly as ties allow."""
    if FILTER_COLUMN not in table.schema.names:
        return []
    sizes = table[FILTER_COLUMN].to_numpy()
    ordered = np.sort(sizes)[::-1]
    filters = []
    for fraction in FRACTIONS:
        limit = int(ordered[min(len(ordered) - 1, math.ceil(fraction * len(ordered)) - 1)])
        mask = sizes >= limit
        truth = list(nearest(data.vectors, data.queries, mask))
        filters.append(Filter(f"{FILTER_COLUMN} >= {limit}", fraction, int(mask.sum()), mask, truth))
    return filters


def recall(found: Sequence[Sequence[int]], truth: Truth) -> float:
    """The part of the true neighbours that was found."""
    right = sum(len(set(got) & {int(row) for row in true}) for got, true in zip(found, truth, strict=True))
    return right / max(1, sum(len(true) for true in truth))
