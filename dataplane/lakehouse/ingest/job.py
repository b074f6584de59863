"""What the process that converts is asked, and what it answers: one JSON value per line.

Paths are local files; the schema is decided by the asking side.  What this module does not do: convert; see
`lakehouse.ingest.convert`.
"""

from typing import Any

import msgspec

from lakehouse.core.schema import Field, Schema
from lakehouse.ingest.formats import Compression, Format, Shape

Columns = tuple[tuple[str, str], ...]
"""Names and DuckDB's type texts."""
UNKNOWN = '"NULL"'
"""The type of a column of which no value is known: every type will do."""


class File(msgspec.Struct, frozen=True):
    """One source file."""

    uri: str
    path: str
    content_type: str = ""
    format: Format | None = None
    options: dict[str, Any] = {}


class Infer(msgspec.Struct, frozen=True, tag="infer"):
    """What does the file hold?  In a text format, `wanted` types are taken where its values are such."""

    file: File
    wanted: Columns | None = None


class Inferred(msgspec.Struct, frozen=True, tag="inferred"):
    """Format and columns of a file; no columns when it is empty."""

    format: Format
    compression: Compression
    columns: Columns

    @property
    def shape(self) -> Shape:
        return Shape(self.format, self.compression)

    @property
    def schema(self) -> Schema:
        return schema_of(self.columns)


class Convert(msgspec.Struct, frozen=True, tag="convert"):
    """Write the file as Parquet with exactly the columns of `target`, into the new directory `out`."""

    file: File
    inferred: Inferred
    target: Columns
    out: str
    rejects_max: int


class Rewrite(msgspec.Struct, frozen=True, tag="rewrite"):
    """Write Parquet that ingest wrote before once more, with the columns of `target`."""

    paths: tuple[str, ...]
    own: Columns
    target: Columns
    out: str


class Describe(msgspec.Struct, frozen=True, tag="describe"):
    """Which columns does the transform make of a table `source` with these?"""

    sql: str
    source: Columns


class Transform(msgspec.Struct, frozen=True, tag="transform"):
    """Write what the transform makes of the files at `paths`, whose columns are `source`."""

    sql: str
    paths: tuple[str, ...]
    source: Columns
    target: Columns
    out: str


class Gather(msgspec.Struct, frozen=True, tag="gather"):
    """Write one file of rejected rows: those at `paths`, and of the file `old` those of the sources `kept`."""

    paths: tuple[str, ...]
    old: str | None
    kept: tuple[str, ...]
    out: str


class Part(msgspec.Struct, frozen=True):
    """One Parquet file that was written."""

    path: str
    size: int
    rows: int


class Converted(msgspec.Struct, frozen=True, tag="converted"):
    """What was written."""

    parts: tuple[Part, ...]
    rows: int
    stats: dict[str, dict[str, Any]]
    rejects: int = 0
    rejects_path: str | None = None
    sample: tuple[dict[str, Any], ...] = ()


class Retype(msgspec.Struct, frozen=True, tag="retype"):
    """The file holds values that these columns' types would change (2.5 among integers): decide again."""

    columns: Columns


class Described(msgspec.Struct, frozen=True, tag="described"):
    """Columns of a transform's result."""

    columns: Columns


class Advance(msgspec.Struct, frozen=True, tag="advance"):
    """How much of the task at hand is done, from 0 to 1."""

    done: float


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The task failed: `kind` is the name of the error in `lakehouse.core.errors`."""

    kind: str
    message: str


Task = Infer | Convert | Rewrite | Describe | Transform | Gather
Answer = Inferred | Converted | Retype | Described | Failed
Message = Inferred | Converted | Retype | Described | Failed | Advance


def schema_of(columns: Columns) -> Schema:
    """The columns as a schema; all may be null, as files seldom say otherwise."""
    return Schema(tuple(Field(name, type_) for name, type_ in columns))


def columns_of(schema: Schema) -> Columns:
    """The schema as a task carries it."""
    return tuple((field.name, field.type) for field in schema.fields)
