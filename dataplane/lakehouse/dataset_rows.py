"""A dataset version's rows as items of an index: read in batches, each checked, the first wrong row named.

The Parquet files are those one manifest names, so what is read is one version, whatever is published meanwhile.  A
column that does not fit, a missing id or vector, or a vector of another length ends the build before anything of it
can be seen.  What this module does not do: build, or refuse what no index may hold (`lakehouse.building` does both).
"""

import decimal
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lakehouse.core.errors import Invalid
from lakehouse.core.manifest import Manifest
from lakehouse.core.types import Batch, Vectors
from lakehouse.runtime import Runtime
from lakehouse.store.base import ObjectStore

ROWS_PER_BATCH = 2_000
"""384-dimensional vectors of so many rows are 3 MB; converting them takes some 20 ms."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a dataset make an item, and what its vectors must be."""

    id: str
    vector: str
    metadata: tuple[str, ...]
    dimension: int

    @property
    def all(self) -> list[str]:
        """Each once, in the order in which they are read."""
        return list(dict.fromkeys((self.id, self.vector, *self.metadata)))


class Rows:
    """The rows of one version, as batches in the order of its files."""

    def __init__(
        self, manifest: Manifest, columns: Columns, store: ObjectStore, runtime: Runtime, scratch: Path
    ) -> None:
        self._manifest = manifest
        self._columns = columns
        self._store = store
        self._runtime = runtime
        self._scratch = scratch
        self._count = 0

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """All rows.  Raises `Invalid` naming the first row that cannot be an item, `NotFound`, `Corrupt`."""
        for item in self._manifest.objects:
            path = self._scratch / f"build-{self._runtime.uuid().hex}.parquet"
            try:
                await self._store.download(str(item["key"]), path)
                async for batch in self._file(path):
                    yield batch
            finally:
                await self._runtime.run_io(path.unlink, missing_ok=True)

    async def _file(self, path: Path) -> AsyncGenerator[Batch, None]:
        found = await self._runtime.run_io(_opened, path, self._columns)
        try:
            while True:
                batch = await self._runtime.run_background(self._next, found)
                if batch is None:
                    return
                yield batch
        finally:
            found.close()

    def _next(self, found: "_File") -> Batch | None:
        table = next(found.batches, None)
        if table is None:
            return None
        batch = self._batch(table)
        self._count += len(batch)
        return batch

    def _batch(self, table: pa.RecordBatch) -> Batch:
        columns = self._columns
        ids = _ids(table.column(columns.id), columns.id, self._count)
        vectors = _vectors(table.column(columns.vector), columns, ids, self._count)
        return Batch(tuple(ids), vectors, _metadata(table, columns.metadata))


class _File:
    """One open Parquet file."""

    def __init__(self, file: pq.ParquetFile, columns: list[str]) -> None:
        self._file = file
        self.batches: Iterator[pa.RecordBatch] = file.iter_batches(ROWS_PER_BATCH, columns=columns)

    def close(self) -> None:
        self._file.close()


def _opened(path: Path, columns: Columns) -> _File:
    file = pq.ParquetFile(path)
    there = file.schema_arrow.names
    missing = [name for name in columns.all if name not in there]
    if missing:
        file.close()
        raise Invalid(
            f"the dataset has no such column; it has {', '.join(there)}. column=`{', '.join(missing)}`"
        )
    return _File(file, columns.all)


def _ids(column: pa.Array, name: str, before: int) -> list[str]:
    kind = column.type
    if not (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_integer(kind)
        or isinstance(kind, pa.BaseExtensionType)
    ):
        raise Invalid(f"ids are text, whole numbers or UUIDs. column=`{name}` type=`{kind}`")
    ids = []
    for j, value in enumerate(column.to_pylist()):
        text = "" if value is None else str(value)
        if not text:
            raise Invalid(
                f"an id is missing or empty in column `{name}`: every row needs one. row=`{before + j}`"
            )
        ids.append(text)
    return ids


def _vectors(column: pa.Array, columns: Columns, ids: Sequence[str], before: int) -> Vectors:
    """float32 (rows, dimension); raises `Invalid` naming the first row that is wrong."""

    def wrong(j: int, what: str) -> Invalid:
        return Invalid(f"{what}. column=`{columns.vector}` row=`{before + j}` id=`{ids[j]}`")

    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not any(is_number(kind.value_type) for is_number in _NUMBERS):
        raise Invalid(f"vectors are lists of numbers. column=`{columns.vector}` type=`{kind}`")
    if column.null_count:
        raise wrong(_first(pc.is_null(column)), "a row has no vector")
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    for j in np.flatnonzero(lengths != columns.dimension)[:1]:
        raise wrong(
            int(j), f"a vector has {lengths[j]} numbers where the index has {columns.dimension} dimensions"
        )
    values = column.flatten()
    if values.null_count:
        raise wrong(_first(pc.is_null(values)) // columns.dimension, "a vector holds a null")
    if pa.types.is_decimal(values.type):
        values = values.cast(pa.float64())
    flat = values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    return np.ascontiguousarray(flat.reshape(len(ids), columns.dimension))


_NUMBERS = (pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal)


def _first(mask: pa.Array) -> int:
    return int(np.flatnonzero(mask.to_numpy(zero_copy_only=False))[0])


def _metadata(table: pa.RecordBatch, names: tuple[str, ...]) -> tuple[bytes, ...]:
    """One JSON object per row, of the columns asked for."""
    if not names:
        return (b"",) * int(table.num_rows)
    values = [table.column(name).to_pylist() for name in names]
    found: list[bytes] = []
    for row in zip(*values, strict=True):
        text = orjson.dumps(
            dict(zip(names, row, strict=True)), default=_plain, option=orjson.OPT_NON_STR_KEYS
        )
        found.append(text)
    return tuple(found)


def _plain(value: Any) -> Any:
    """What JSON has no type for: decimals as numbers, bytes as hex, the rest as text."""
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, bytes):
        return value.hex()
    return str(value)
