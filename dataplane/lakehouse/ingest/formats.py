"""Which format a file is in, and the SQL that reads it.

The format is guessed from the name, then the content type, then the first bytes; gzip and zstd around any of
them likewise.  Reader options come from an allow-list and are written as literals, so no option can become
SQL.  What this module does not do: open files; it gets their first bytes and gives back text.
"""

import codecs
import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lakehouse.core.errors import Invalid
from lakehouse.core.schema import parsed

HEAD_BYTES = 4_096
"""First bytes (after decompression) that a guess looks at."""
JSON_OBJECT_BYTES_MAX = 64 << 20
"""Largest single JSON record; the vectors route's own body limit."""


class Format(enum.StrEnum):
    """How a file holds rows."""

    CSV = "csv"
    TSV = "tsv"
    JSON = "json"
    """One array of objects, or objects one after another."""
    NDJSON = "ndjson"
    PARQUET = "parquet"


class Compression(enum.StrEnum):
    """What is around the format."""

    NONE = "uncompressed"
    GZIP = "gzip"
    ZSTD = "zstd"


@dataclass(frozen=True, slots=True)
class Shape:
    """Format and compression of one file."""

    format: Format
    compression: Compression = Compression.NONE


_BY_SUFFIX = {
    "csv": Format.CSV,
    "tsv": Format.TSV,
    "tab": Format.TSV,
    "json": Format.JSON,
    "ndjson": Format.NDJSON,
    "jsonl": Format.NDJSON,
    "parquet": Format.PARQUET,
    "pq": Format.PARQUET,
}
_COMPRESSION_BY_SUFFIX = dict.fromkeys(("gz", "gzip"), Compression.GZIP) | dict.fromkeys(
    ("zst", "zstd"), Compression.ZSTD
)
_BY_MEDIA_TYPE = {
    "text/csv": Format.CSV,
    "application/csv": Format.CSV,
    "text/tab-separated-values": Format.TSV,
    "application/json": Format.JSON,
    "application/x-ndjson": Format.NDJSON,
    "application/ndjson": Format.NDJSON,
    "application/jsonl": Format.NDJSON,
    "application/x-jsonlines": Format.NDJSON,
    "application/vnd.apache.parquet": Format.PARQUET,
    "application/x-parquet": Format.PARQUET,
}
GZIP_MAGIC, ZSTD_MAGIC, PARQUET_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"


def compression_of(name: str, head: bytes) -> Compression:
    """What the file is compressed with; its first bytes decide, as names lie."""
    if head.startswith(GZIP_MAGIC):
        return Compression.GZIP
    if head.startswith(ZSTD_MAGIC):
        return Compression.ZSTD
    if head and _suffixes(name)[1] is not None:
        raise Invalid(f"the file is not compressed as its name says. source=`{name}`")
    return Compression.NONE


def guess(name: str, content_type: str, head: bytes) -> Format:
    """The format of a file whose first bytes, decompressed, are `head`.  Raises `Invalid` when nothing tells."""
    by_name = _suffixes(name)[0]
    media_type = content_type.partition(";")[0].strip().lower()
    found = by_name or _BY_MEDIA_TYPE.get(media_type) or _by_content(head)
    if found is None:
        raise Invalid(
            "the format cannot be guessed from the name, the content type or the first bytes: say "
            f"{', '.join(Format)}. source=`{name}`"
        )
    if found is Format.JSON and _is_one_object_per_line(head):
        return Format.NDJSON
    return found


def _suffixes(name: str) -> tuple[Format | None, Compression | None]:
    """Format and compression by name: `x.csv.gz` is CSV in gzip."""
    stem, _, last = name.lower().rpartition(".")
    compression = _COMPRESSION_BY_SUFFIX.get(last)
    if compression is not None:
        last = stem.rpartition(".")[2]
    return _BY_SUFFIX.get(last), compression


def _by_content(head: bytes) -> Format | None:
    if head.startswith(PARQUET_MAGIC):
        return Format.PARQUET
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if text.startswith(b"["):
        return Format.JSON
    if text.startswith(b"{"):
        return Format.NDJSON if _is_one_object_per_line(head) else Format.JSON
    if not text or b"\0" in head:
        return None
    first = text.partition(b"\n")[0]
    return Format.TSV if first.count(b"\t") > first.count(b",") else Format.CSV


def _is_one_object_per_line(head: bytes) -> bool:
    """Whether the first line is a whole object and another one follows."""
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    first, newline, rest = text.partition(b"\n")
    return (
        bool(newline)
        and first.startswith(b"{")
        and first.rstrip().endswith(b"}")
        and rest.lstrip()[:1] == b"{"
    )


# --- options


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() in ("true", "1", "yes"):
        return True
    if str(value).lower() in ("false", "0", "no"):
        return False
    raise ValueError("is true or false")


def _count(value: Any) -> int:
    if isinstance(value, bool) or not 0 <= int(value) <= 1 << 31:
        raise ValueError("is a number from 0")
    return int(value)


def _sign(value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 4:
        raise ValueError("has 1 to 4 characters")
    return {"\\t": "\t", "tab": "\t"}.get(value, value)


def _quote_sign(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 1:
        raise ValueError("is one character, or empty for none")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 200 or "\0" in value:
        raise ValueError("is a text of up to 200 characters")
    return value


_ENCODINGS = {"utf-8": "utf-8", "utf8": "utf-8", "utf-16": "utf-16", "utf16": "utf-16"} | dict.fromkeys(
    ("latin-1", "latin1", "iso-8859-1"), "latin-1"
)


def _encoding(value: Any) -> str:
    known = _ENCODINGS.get(str(value).lower())
    if known is None:
        raise ValueError("is utf-8, utf-16 or latin-1")
    return known


def _types(value: Any) -> dict[str, str]:
    """`{"a": "BIGINT"}`, or as a text `a:BIGINT,b:DECIMAL(10,2)`."""
    pairs = _type_pairs(value) if isinstance(value, str) else value
    if not isinstance(pairs, Mapping) or not pairs:
        raise ValueError("names columns and their types, as in a:BIGINT,b:DATE")
    for type_ in pairs.values():
        parsed(str(type_))
    return {str(name): str(type_) for name, type_ in pairs.items()}


def _type_pairs(text: str) -> dict[str, str]:
    pairs, depth, start = [], 0, 0
    for at, sign in enumerate(f"{text},"):
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if sign == "," and depth == 0:
            pairs.append(text[start:at].partition(":"))
            start = at + 1
    return {name.strip(): type_.strip() for name, colon, type_ in pairs if colon and type_.strip()}


_CSV = {
    "delimiter": ("delim", _sign),
    "quote": ("quote", _quote_sign),
    "escape": ("escape", _quote_sign),
    "header": ("header", _flag),
    "encoding": ("encoding", _encoding),
    "null": ("nullstr", _text),
    "skip": ("skip", _count),
    "comment": ("comment", _quote_sign),
    "date_format": ("dateformat", _text),
    "timestamp_format": ("timestampformat", _text),
    "decimal_separator": ("decimal_separator", _quote_sign),
    "all_text": ("all_varchar", _flag),
}
_JSON = {"date_format": ("dateformat", _text), "timestamp_format": ("timestampformat", _text)}
OPTIONS = frozenset({*_CSV, *_JSON, "types"})
"""Reader options: those of CSV and TSV; JSON takes the two formats and `types`; Parquet takes none."""


def checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with their values in one form.  Raises `Invalid` on an unknown one or a bad value."""
    unknown = sorted(set(options) - OPTIONS)
    if unknown:
        raise Invalid(f"no such reader option; there are {', '.join(sorted(OPTIONS))}. option=`{unknown[0]}`")
    return {name: _checked(name, value) for name, value in sorted(options.items())}


def _checked(name: str, value: Any) -> Any:
    check = _types if name == "types" else _CSV[name][1]
    try:
        return check(value)
    except (ValueError, TypeError) as error:
        raise Invalid(f"the reader option {name} {error}. {name}=`{value}`") from error


def csv_arguments(shape: Shape, options: Mapping[str, Any]) -> dict[str, Any]:
    """Named arguments of `read_csv`."""
    chosen = {_CSV[name][0]: value for name, value in options.items() if name in _CSV}
    if shape.format is Format.TSV:
        chosen.setdefault("delim", "\t")
    return {"compression": shape.compression.value, **chosen}


def json_arguments(shape: Shape, options: Mapping[str, Any]) -> dict[str, Any]:
    """Named arguments of `read_json`."""
    chosen = {_JSON[name][0]: value for name, value in options.items() if name in _JSON}
    newline = shape.format is Format.NDJSON
    return {
        "compression": shape.compression.value,
        "format": "newline_delimited" if newline else "auto",
        "records": "true",
        "maximum_object_size": JSON_OBJECT_BYTES_MAX,
        **chosen,
    }


def call(function: str, path: str, arguments: Mapping[str, Any]) -> str:
    """The SQL of a reader.  A path that holds `year=2020` gives no column: names of folders are no rows."""
    all_arguments = {**arguments, "hive_partitioning": False}
    named = "".join(f", {name} = {literal(value)}" for name, value in all_arguments.items())
    return f"{function}({literal(path)}{named})"


def parquet(paths: Iterable[str]) -> str:
    """The SQL that reads Parquet files with the same columns."""
    return f"read_parquet([{', '.join(map(literal, paths))}], hive_partitioning = false)"


def literal(value: Any) -> str:
    """`value` as SQL."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{literal(key)}: {literal(each)}' for key, each in value.items())}}}"
    escaped = str(value).replace("'", "''")
    return f"'{escaped}'"


def identifier(name: str) -> str:
    """`name` as a quoted SQL name."""
    escaped = name.replace('"', '""')
    return f'"{escaped}"'
