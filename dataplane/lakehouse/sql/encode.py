"""Rows become bytes in the worker, so that the parent only passes them on.

Arrow and Parquet carry DuckDB's types.  The text formats carry numbers as numbers with all their digits (HUGEINT
and DECIMAL too), nested values as JSON, BLOB as base64, and everything else, dates and times among it, as the text
DuckDB prints; NaN and infinities, which JSON has no words for, are null there.  What this module does not do: limit
what a query costs; the sandbox does.
"""

import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from lakehouse.sql.formats import Format

BATCH_ROWS = 2_048
"""Rows encoded at once: DuckDB's own vector size."""
GROUP_ROWS, GROUP_BYTES = 122_880, 32 << 20
"""A Parquet row group ends at whichever comes first."""
METADATA_KEY = "lakehouse.truncated"
"""Where Parquet files and Arrow streams say whether rows were cut off."""

_PLAIN = re.compile(r"BOOLEAN|U?(TINY|SMALL|BIG)INT|U?INTEGER|FLOAT|DOUBLE|VARCHAR|\"NULL\"")
_DIGITS = re.compile(r"U?HUGEINT|BIGNUM|DECIMAL\(.*\)")
_FLOATS = re.compile(r"(FLOAT|DOUBLE)\[\d*\]")
_NESTED = re.compile(r"(STRUCT|MAP|UNION)\b.*|.*\]|VARIANT", re.DOTALL)
_ENUM = re.compile(r"ENUM\(.*\)", re.DOTALL)
"""Not a list of them, which ends in a bracket; what a value holds does not matter."""
_NOT_IN_ARROW = re.compile(r"\b(UNION|VARIANT|BIGNUM|BIT|GEOMETRY|TIME WITH TIME ZONE|UHUGEINT)\b")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a result, as DuckDB names its type."""

    name: str
    type: str


AS_THEY_ARE = frozenset((Format.ARROW, Format.PARQUET))
"""Forms that nearly every column goes into without a change."""


def projection(columns: Sequence[Column], form: Format) -> list[str] | None:
    """For each column `cN` what to select instead; None when every column goes as it is."""
    express = _for_arrow if form in AS_THEY_ARE else _for_text
    chosen = [express(column.type, f"c{j}", form) for j, column in enumerate(columns)]
    return None if all(one == f"c{j}" for j, one in enumerate(chosen)) else chosen


def _for_text(kind: str, name: str, form: Format) -> str:
    if _PLAIN.fullmatch(kind) or (form is not Format.CSV and _FLOATS.fullmatch(kind)):
        return name
    if kind == "BLOB":
        return f"to_base64({name})"
    if kind == "JSON":
        return f"CASE WHEN json_valid({name}) THEN {name}::VARCHAR ELSE to_json({name}::VARCHAR)::VARCHAR END"
    if not _ENUM.fullmatch(kind) and _NESTED.fullmatch(kind):
        return f"to_json({name})::VARCHAR"
    return f"CAST({name} AS VARCHAR)"


def _for_arrow(kind: str, name: str, form: Format) -> str:
    if _ENUM.fullmatch(kind):
        return f"CAST({name} AS VARCHAR)"
    refused = _NOT_IN_ARROW.search(kind) or (form is Format.PARQUET and "INTERVAL" in kind)
    if not refused:
        return name
    return f"to_json({name})::VARCHAR" if _NESTED.fullmatch(kind) else f"CAST({name} AS VARCHAR)"


# --- JSON values

_Values = Iterable[Any]


def _reader(kind: str) -> Callable[[pa.Array], _Values]:
    """How one Arrow column becomes Python values that orjson writes as they should be."""
    if kind in ("FLOAT", "DOUBLE"):
        return lambda array: list(array.to_numpy(zero_copy_only=False))
    if _FLOATS.fullmatch(kind):
        return _float_lists
    if kind == "JSON" or _DIGITS.fullmatch(kind) or (not _ENUM.fullmatch(kind) and _NESTED.fullmatch(kind)):
        return lambda array: [None if text is None else _fragment(text) for text in array.to_pylist()]
    return _plain


def _plain(array: pa.Array) -> _Values:
    if pa.types.is_integer(array.type) and array.null_count == 0:
        return array.to_numpy().tolist()  # type: ignore[no-any-return]
    return array.to_pylist()  # type: ignore[no-any-return]


def _float_lists(array: pa.Array) -> _Values:
    values = array.values.to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        bounds = np.arange(array.offset, array.offset + len(array) + 1) * size
    else:
        bounds = array.offsets.to_numpy()
    rows: list[Any] = [values[start:end] for start, end in itertools.pairwise(bounds)]
    if array.null_count:
        for j in np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False)):
            rows[j] = None
    return rows


_NOT_JSON = re.compile(r"NaN|Infinity|nan|inf")


def _fragment(text: str) -> orjson.Fragment:
    if _NOT_JSON.search(text):  # perhaps only inside a string
        text = json.dumps(_finite(json.loads(text)), ensure_ascii=False)
    return orjson.Fragment(text)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return value


def _rows(batch: pa.RecordBatch, readers: Sequence[Callable[[pa.Array], _Values]]) -> list[tuple[Any, ...]]:
    return list(
        zip(*(read(column) for read, column in zip(readers, batch.columns, strict=True)), strict=True)
    )


# --- encoders


class Sink(Protocol):
    """Where bytes of a result go."""

    def __call__(self, data: bytes, /) -> None: ...


class Encoder(Protocol):
    """One result in the making."""

    def begin(self, schema: pa.Schema) -> None: ...

    def cost(self, batch: pa.RecordBatch) -> int:
        """Bytes this batch adds to the answer as `byte_limit` counts them."""
        ...

    def add(self, batch: pa.RecordBatch) -> None: ...

    def end(self, truncated: bool, extra: dict[str, Any]) -> None: ...


class _Text:
    """Formats whose bytes are known before they are sent."""

    def __init__(self, columns: Sequence[Column], sink: Sink) -> None:
        self._columns = columns
        self._sink = sink
        self._encoded: tuple[pa.RecordBatch | None, bytes] = (None, b"")

    def cost(self, batch: pa.RecordBatch) -> int:
        return len(self._once(batch))

    def add(self, batch: pa.RecordBatch) -> None:
        self._sink(self._once(batch))

    def _once(self, batch: pa.RecordBatch) -> bytes:
        if self._encoded[0] is not batch:
            self._encoded = (batch, self._encode(batch))
        return self._encoded[1]

    def _encode(self, batch: pa.RecordBatch) -> bytes:
        raise NotImplementedError


class _Json(_Text):
    def begin(self, schema: pa.Schema) -> None:
        self._readers = [_reader(column.type) for column in self._columns]
        self._count = 0
        shown = [{"name": column.name, "type": column.type} for column in self._columns]
        self._sink(b'{"columns":' + orjson.dumps(shown) + b',"rows":[')

    def _encode(self, batch: pa.RecordBatch) -> bytes:
        rows = orjson.dumps(_rows(batch, self._readers), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
        return b"," + rows if self._count else rows

    def add(self, batch: pa.RecordBatch) -> None:
        super().add(batch)
        self._count += batch.num_rows

    def end(self, truncated: bool, extra: dict[str, Any]) -> None:
        tail = {"row_count": self._count, "truncated": truncated, **extra}
        self._sink(b"]," + orjson.dumps(tail)[1:])


class _Ndjson(_Text):
    def begin(self, schema: pa.Schema) -> None:
        self._readers = [_reader(column.type) for column in self._columns]
        self._names = distinct([column.name for column in self._columns])

    def _encode(self, batch: pa.RecordBatch) -> bytes:
        option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
        rows = _rows(batch, self._readers)
        return b"".join(orjson.dumps(dict(zip(self._names, row, strict=True)), option=option) for row in rows)

    def end(self, truncated: bool, extra: dict[str, Any]) -> None:
        """Nothing: a line is a row."""


class _Csv(_Text):
    def begin(self, schema: pa.Schema) -> None:
        header = pa.table({name: pa.array([], pa.string()) for name in distinct(schema.names)})
        self._sink(_csv(header, header=True))

    def _encode(self, batch: pa.RecordBatch) -> bytes:
        return _csv(pa.Table.from_batches([batch]), header=False)

    def end(self, truncated: bool, extra: dict[str, Any]) -> None:
        """Nothing: a line is a row."""


def _csv(table: pa.Table, *, header: bool) -> bytes:
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(
        table, buffer, pyarrow.csv.WriteOptions(include_header=header, quoting_style="needed")
    )
    return buffer.getvalue()


class _Arrow:
    def __init__(self, columns: Sequence[Column], sink: Sink) -> None:
        self._file = pa.PythonFile(_File(sink), mode="w")

    def begin(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = pa.ipc.new_stream(self._file, schema)

    def cost(self, batch: pa.RecordBatch) -> int:
        return int(batch.nbytes)

    def add(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch)

    def end(self, truncated: bool, extra: dict[str, Any]) -> None:
        if truncated:
            nothing = pa.RecordBatch.from_pylist([], schema=self._schema)
            self._writer.write_batch(nothing, custom_metadata={METADATA_KEY: "true"})
        self._writer.close()
        self._file.close()


class _Parquet:
    def __init__(self, columns: Sequence[Column], sink: Sink) -> None:
        self._file = pa.PythonFile(_File(sink), mode="w")
        self._waiting: list[pa.RecordBatch] = []

    def begin(self, schema: pa.Schema) -> None:
        names = distinct(schema.names)
        self._schema = pa.schema([field.with_name(name) for field, name in zip(schema, names, strict=True)])
        self._writer = pyarrow.parquet.ParquetWriter(self._file, self._schema, compression="zstd")

    def cost(self, batch: pa.RecordBatch) -> int:
        return int(batch.nbytes)

    def add(self, batch: pa.RecordBatch) -> None:
        self._waiting.append(batch.rename_columns(self._schema.names))
        rows, size = (sum(getattr(one, of) for one in self._waiting) for of in ("num_rows", "nbytes"))
        if rows >= GROUP_ROWS or size >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting, self._schema), GROUP_ROWS)
            self._waiting = []

    def end(self, truncated: bool, extra: dict[str, Any]) -> None:
        self._flush()
        self._writer.add_key_value_metadata({METADATA_KEY: str(truncated).lower()})
        self._writer.close()
        self._file.close()


class _File(io.RawIOBase):
    """What pyarrow writes to: gathers small pieces, never seeks."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._buffer = bytearray()
        self._sent = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self._buffer += data
        self._sent += size
        if len(self._buffer) >= 1 << 18:
            self.flush()
        return size

    def tell(self) -> int:
        return self._sent

    def flush(self) -> None:
        if self._buffer:
            self._sink(bytes(self._buffer))
            self._buffer.clear()

    def close(self) -> None:
        if not self.closed:
            self.flush()
        super().close()


ENCODERS: dict[Format, Callable[[Sequence[Column], Sink], Encoder]] = {
    Format.JSON: _Json,
    Format.NDJSON: _Ndjson,
    Format.CSV: _Csv,
    Format.ARROW: _Arrow,
    Format.PARQUET: _Parquet,
}


@dataclass(frozen=True, slots=True)
class Written:
    """What went into the answer."""

    rows: int
    truncated: bool


def write(reader: pa.RecordBatchReader, encoder: Encoder, row_limit: int, byte_limit: int) -> Written:
    """Encode rows until they end or a limit is reached; the caller ends the encoder."""
    encoder.begin(reader.schema)
    rows, used = 0, 0
    for batch in reader:
        fitting, cost = _fitting(
            batch.slice(0, min(batch.num_rows, row_limit - rows)), encoder, byte_limit - used
        )
        if fitting.num_rows:
            encoder.add(fitting)
            rows, used = rows + fitting.num_rows, used + cost
        if fitting.num_rows < batch.num_rows:
            return Written(rows, truncated=True)
    return Written(rows, truncated=False)


def _fitting(batch: pa.RecordBatch, encoder: Encoder, room: int) -> tuple[pa.RecordBatch, int]:
    """The longest head of `batch` found to cost at most `room`, and its cost."""
    while batch.num_rows:
        cost = encoder.cost(batch)
        if cost <= room:
            return batch, cost
        batch = batch.slice(0, min(batch.num_rows - 1, batch.num_rows * room // cost))
    return batch, 0


def distinct(names: Sequence[str]) -> list[str]:
    """Column names made unique: a second `a` becomes `a_1`."""
    taken: set[str] = set()
    made = []
    for name in names:
        count, unique = 0, name
        while unique in taken:
            count += 1
            unique = f"{name}_{count}"
        taken.add(unique)
        made.append(unique)
    return made
