"""NDJSON a line at a time: slow, and used only where reading it all at once has failed.

A line that is not one JSON object, or whose values do not fit the columns, becomes a rejected row with its
number; the others are copied to a file that can be read at once.  What this module does not do: decide on
columns.
"""

import codecs
import contextlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import duckdb
import msgspec
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from lakehouse.ingest.formats import JSON_OBJECT_BYTES_MAX, Compression, Shape
from lakehouse.ingest.job import File

CHUNK_BYTES = 1 << 20
CHUNK_LINES = 4_096
"""Lines that are tried together; a bad one costs reading at most so many again."""
TEXT_CHARACTERS_MAX = 10_000
"""Of a rejected line so much is kept."""

Opened = Callable[[Path, Compression], AbstractContextManager[IO[bytes]]]
Line = tuple[int, bytes]
"""Its number, from 1, and its bytes."""
Bad = tuple[int, str, bytes]
"""Its number, what is wrong with it, and its bytes."""

_SCHEMA = pa.schema(
    {
        "source": pa.string(),
        "line": pa.int64(),
        "column": pa.string(),
        "error": pa.string(),
        "text": pa.string(),
    }
)
_LINE = re.compile(r"in (?:line|record/value) (\d+)")


def decoded(text: str) -> Any:
    """A JSON value; one with an integer beyond 64 bits too.  NaN and infinities, which DuckDB writes, are null."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return json.loads(text, parse_constant=lambda _: None)


def numbers_at(file: IO[bytes], places: Sequence[int]) -> list[int]:
    """The line, from 1, that each of these bytes (ascending, from 0) is on; a line ends with `\\n`, or with `\\r`
    where the file has no other."""
    found: list[int] = []
    number, start = 1, 0
    end = b""
    while len(found) < len(places) and (chunk := file.read(CHUNK_BYTES)):
        end = end or next((mark for mark in (b"\n", b"\r") if mark in chunk), b"")
        at = 0
        while len(found) < len(places) and places[len(found)] < start + len(chunk):
            to = places[len(found)] - start + 1  # DuckDB begins a line after a `\r\n` at its second byte
            number += chunk.count(end or b"\n", at, to)
            at = to
            found.append(number)
        number += chunk.count(end or b"\n", at)
        start += len(chunk)
    return found + [number] * (len(places) - len(found))


def problem(line: bytes) -> str | None:
    """Why a line is not a JSON object; None when it is one."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return f"not JSON: {error.msg}"
    return None if isinstance(value, dict) else f"not a JSON object but {type(value).__name__}"


def numbered(file: IO[bytes]) -> Iterator[Line]:
    """The lines that hold anything.  One over the limit comes cut, and so is not JSON."""
    number = 0
    while line := file.readline(JSON_OBJECT_BYTES_MAX):
        number += 1
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        while not line.endswith(b"\n") and (rest := file.readline(JSON_OBJECT_BYTES_MAX)):
            line = line[:TEXT_CHARACTERS_MAX]
            if rest.endswith(b"\n"):
                break
        if line.strip():
            yield number, line.rstrip(b"\r\n")


@contextlib.contextmanager
def wellformed(file: File, shape: Shape, opened: Opened) -> Iterator[Path]:
    """A file of the lines that are JSON objects, gone afterwards."""
    with tempfile.TemporaryDirectory(dir=Path(file.path).parent) as folder:
        path = Path(folder) / "wellformed.ndjson"
        with opened(Path(file.path), shape.compression) as source, path.open("wb") as copy:
            copy.writelines(line + b"\n" for _, line in numbered(source) if problem(line) is None)
        yield path


def clean(
    file: File,
    shape: Shape,
    opened: Opened,
    cleaned: Path,
    rejects: Path,
    rejects_max: int,
    readable: Callable[[Path], None],
) -> int:
    """Copy what `readable` (which raises `duckdb.Error`) takes to `cleaned`, the rest to Parquet at `rejects`.

    Returns how many were rejected, and stops soon after `rejects_max` of them.
    """
    count = 0
    with (
        opened(Path(file.path), shape.compression) as source,
        cleaned.open("wb") as copy,
        pq.ParquetWriter(rejects, _SCHEMA, compression="zstd") as writer,
    ):
        for chunk in _chunks(numbered(source)):
            bad = [(number, why, line) for number, line in chunk if (why := problem(line)) is not None]
            unfit = {number for number, _, _ in bad}
            good = [(number, line) for number, line in chunk if number not in unfit]
            bad += _unreadable(
                good, cleaned.with_name("chunk.ndjson"), readable, rejects_max - count - len(bad)
            )
            unfit = {number for number, _, _ in bad}
            copy.writelines(line + b"\n" for number, line in good if number not in unfit)
            count += len(bad)
            writer.write_table(_table(file.uri, sorted(bad)))
            if count > rejects_max:
                break
    return count


def _chunks(lines: Iterator[Line]) -> Iterator[list[Line]]:
    chunk: list[Line] = []
    for line in lines:
        chunk.append(line)
        if len(chunk) == CHUNK_LINES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _unreadable(
    good: Sequence[Line], path: Path, readable: Callable[[Path], None], bad_max: int
) -> list[Bad]:
    """Lines that DuckDB refuses; it names the first one, so reading goes on after it."""
    bad: list[Bad] = []
    rest = list(good)
    while rest and len(bad) <= bad_max:
        path.write_bytes(b"".join(line + b"\n" for _, line in rest))
        try:
            readable(path)
            break
        except duckdb.Error as error:
            at = _failed_at(error, rest, path, readable)
            number, line = rest[at]
            bad.append((number, _reason(error, path), line))
            # What precedes the line DuckDB names need not be right: threads race. Only that line goes.
            del rest[at]
    path.unlink(missing_ok=True)
    return bad


def _failed_at(
    error: duckdb.Error, rest: Sequence[Line], path: Path, readable: Callable[[Path], None]
) -> int:
    """The place of the line that is to blame."""
    named = _LINE.search(str(error))
    if named is not None and 1 <= int(named[1]) <= len(rest):
        return int(named[1]) - 1
    for at, (_, line) in enumerate(rest):
        path.write_bytes(line + b"\n")
        try:
            readable(path)
        except duckdb.Error:
            return at
    return 0


def _reason(error: duckdb.Error, path: Path) -> str:
    text = str(error).partition("\n")[0]
    text = text.partition(" Error: ")[2] or text
    return re.sub(rf' in file "{re.escape(str(path))}",( at byte \d+)? in (line|record/value) \d+', "", text)


def _table(uri: str, bad: Sequence[Bad]) -> pa.Table:
    texts = [line[:TEXT_CHARACTERS_MAX].decode("utf-8", "replace") for _, _, line in bad]
    return pa.table(
        {
            "source": [uri] * len(bad),
            "line": [number for number, _, _ in bad],
            "column": pa.nulls(len(bad), pa.string()),
            "error": [why for _, why, _ in bad],
            "text": texts,
        },
        schema=_SCHEMA,
    )
