"""The calls on datasets: files and frames in, versions and rejected rows out.

An ingest is repeated only because equal content is no change: the server knows what it has taken by its bytes.
What this module does not do: read rows; the server does, and says which it could not read.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict, runtime_checkable

import httpx

from lakehouse.client.tabular import Tabular, counted
from lakehouse.client.wire import (
    BINARY,
    CSV,
    JSON,
    NDJSON,
    PARQUET,
    Call,
    Form,
    Fresh,
    Progress,
    Request,
    Upload,
    given,
    json_of,
    nothing,
    path,
    query_text,
)
from lakehouse.core import errors

TIMEOUT_S = 3_600.0
"""Of the answer to an ingest: a file of some gigabytes takes minutes to convert, and nothing comes meanwhile."""
MEDIA_TYPES: Mapping[str, str] = {
    "csv": CSV,
    "tsv": "text/tab-separated-values",
    "json": JSON,
    "ndjson": NDJSON,
    "parquet": PARQUET,
}
FORMATS = tuple(MEDIA_TYPES)
SUFFIXES: Mapping[str, str] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".parquet": "parquet",
    ".pq": "parquet",
}
COMPRESSIONS = (".gz", ".gzip", ".zst", ".zstd")


@runtime_checkable
class ArrowStream(Protocol):
    """What pyarrow, pandas, polars, DuckDB and our own results have in common."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


Source = str | PathLike[str] | bytes | ArrowStream
"""A file, its bytes, or a frame."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """One version of a dataset, as its manifest describes it."""

    name: str
    version: int
    row_count: int | None
    columns: tuple[tuple[str, str], ...] = ()
    """(name, DuckDB type) of each column."""
    bytes: int | None = None
    rejected: int = 0
    """Rows of the sources that could not be read; `dataset_rejects` shows them."""
    created_at: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The whole manifest."""

    @property
    def files(self) -> int:
        """Parquet files that hold it."""
        return len(self.manifest.get("objects", ()))


@dataclass(frozen=True, slots=True)
class Ingested:
    """What an ingest came to."""

    dataset: Dataset
    """The version that holds now; after a dry run what would have been published."""
    published: bool
    """Whether it made that version; False where nothing had changed, and in a dry run."""
    rejected: int
    """Rows of this data that could not be read."""
    details: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """All the server said: `changes` of the schema, the first `rejects`, and of a dry run a `sample` of rows."""


@dataclass(frozen=True, slots=True, repr=False)
class Rejects(Tabular):
    """Rows that could not be read: `source`, `line`, `column`, `error`, `text`."""

    rejected: tuple[Mapping[str, Any], ...]
    count: int
    """All there are; `rejected` may be the first of them."""

    def __len__(self) -> int:
        return len(self.rejected)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self.rejected)

    def to_arrow(self) -> Any:
        import pyarrow as pa

        schema = pa.schema(
            [
                ("source", pa.string()),
                ("line", pa.int64()),
                ("column", pa.string()),
                ("error", pa.string()),
                ("text", pa.string()),
            ]
        )
        return pa.Table.from_pylist(list(self.rejected), schema)

    def _footer(self) -> str:
        return f"{counted(self.count)} rejected"


class IngestOptions(TypedDict, total=False):
    """What an ingest takes besides its data and name."""

    mode: Literal["replace", "append"]
    """`replace`, the default: the dataset is this data now; `append`: this data is added."""
    format: Literal["csv", "tsv", "json", "ndjson", "parquet"] | None
    """Default: by the file's name, else by its first bytes."""
    schema_policy: Literal["Strict", "AddOnly", "Any"] | None
    """How far the schema may differ from the last version's."""
    transform: str | None
    """A SELECT over the table `source`."""
    dry_run: bool
    """Read and judge everything, publish nothing."""
    fingerprint: str | None
    """The only schema allowed, by its fingerprint."""
    max_rejects: int | None
    """Most rows that may be unreadable; by default all but one may."""
    options: Mapping[str, Any]
    """How to read it, such as `{"delimiter": ";", "header": False, "types": "id:BIGINT"}`."""


def format_of(name: str) -> str | None:
    """The format that a file's name tells, compressed or not; None when it tells none."""
    plain = Path(name.lower())
    if plain.suffix in COMPRESSIONS:
        plain = plain.with_suffix("")
    return SUFFIXES.get(plain.suffix)


@contextlib.contextmanager
def opened(
    source: Source | Sequence[str | PathLike[str]], options: IngestOptions
) -> Iterator[tuple[Path | bytes | tuple[Path, ...], IngestOptions]]:
    """What can be sent: a frame becomes a Parquet file for as long as this lasts.  Raises `Invalid`."""
    if isinstance(source, list | tuple):
        yield _paths(source), options
    elif isinstance(source, bytes):
        yield source, options
    elif isinstance(source, str | PathLike):
        yield Path(fspath(source)).expanduser(), options
    elif isinstance(source, ArrowStream):
        with tempfile.TemporaryDirectory(prefix="lakehouse-") as folder:
            file = Path(folder) / "frame.parquet"
            _write_parquet(source, file)
            yield file, IngestOptions(**options | {"format": "parquet"})
    else:
        raise errors.Invalid(
            "ingest takes a path, a list of paths, bytes, or a frame that speaks the Arrow C stream. "
            f"type=`{type(source).__name__}`"
        )


def _paths(sources: Sequence[Any]) -> tuple[Path, ...]:
    if not sources:
        raise errors.Invalid("ingest takes at least one file")
    for source in sources:
        if not isinstance(source, str | PathLike):
            raise errors.Invalid(
                f"of several sources each is the path of a file. type=`{type(source).__name__}`"
            )
    return tuple(Path(fspath(source)).expanduser() for source in sources)


def _write_parquet(frame: ArrowStream, file: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pa.RecordBatchReader.from_stream(frame) as reader, pq.ParquetWriter(file, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)


# --- the calls ----------------------------------------------------------------------------------------------


def ingest(
    data: Path | bytes | tuple[Path, ...],
    name: str,
    options: IngestOptions,
    progress: Progress | None,
    fresh: Fresh,
) -> Call[Ingested]:
    """Send a file, its bytes, or several files at once, to become the dataset `name`."""
    if isinstance(data, tuple) and len(data) == 1:
        data = data[0]
    reading = options.get("options", {})
    _check(options.get("format"), reading)
    asked = {key: value for key, value in {**reading, **options}.items() if key != "options"}
    if isinstance(data, Path):
        asked["filename"] = data.name
    params = {key: query_text(value) for key, value in given(name=name, **asked).items()}
    media_type, content = _content(data, options.get("format"), progress, fresh)
    headers = {"content-type": media_type}
    return Call(Request("POST", "/v1/ingest", params, headers, content, timeout_s=TIMEOUT_S), _read_ingested)


def _content(
    data: Path | bytes | tuple[Path, ...], told: str | None, progress: Progress | None, fresh: Fresh
) -> tuple[str, bytes | Upload | Form]:
    """The body, and its media type."""
    if isinstance(data, bytes):
        return MEDIA_TYPES.get(told or "", BINARY), data
    if isinstance(data, Path):
        return _media_type(data, told), Upload.of(data, progress)
    form = Form(tuple((_media_type(file, told), Upload.of(file)) for file in data), fresh(), progress)
    return f"multipart/form-data; boundary={form.boundary}", form


def _media_type(file: Path, told: str | None) -> str:
    return MEDIA_TYPES.get(told or format_of(file.name) or "", BINARY)


def _check(told: str | None, reading: Mapping[str, Any]) -> None:
    if told is not None and told not in FORMATS:
        raise errors.Invalid(f"the format is one of {', '.join(FORMATS)}. format=`{told}`")
    for name in (*IngestOptions.__annotations__, "name", "filename"):
        if name in reading:
            raise errors.Invalid(f"this is a parameter of its own, not a reader option. option=`{name}`")


def ingests(fresh: Fresh) -> Call[tuple[Mapping[str, Any], ...]]:
    """How far each running ingest is."""
    return Call(Request("GET", "/v1/ingest"), lambda answer: tuple(json_of(answer)["running"]))


def datasets(fresh: Fresh) -> Call[tuple[Dataset, ...]]:
    """The newest version of every dataset."""
    return Call(
        Request("GET", "/v1/catalog/list"),
        lambda answer: tuple(map(dataset_of, json_of(answer)["manifests"])),
    )


def dataset(fresh: Fresh, name: str, version: int | None = None) -> Call[Dataset]:
    """One version of a dataset, the newest by default; `name@v3` names one too.  Raises `NotFound`."""
    params = {key: str(value) for key, value in given(version=version).items()}
    return Call(
        Request("GET", path("catalog", "manifest", name), params), lambda answer: dataset_of(json_of(answer))
    )


def dataset_versions(fresh: Fresh, name: str) -> Call[tuple[Dataset, ...]]:
    """Every version that is kept, oldest first."""
    return Call(
        Request("GET", path("catalog", "versions", name)),
        lambda answer: tuple(map(dataset_of, json_of(answer)["versions"])),
    )


def dataset_rejects(
    fresh: Fresh, name: str, version: int | None = None, *, offset: int = 0, limit: int = 1_000
) -> Call[Rejects]:
    """A page of the rows of the sources that could not be read, with file and line; 10,000 at most."""
    params = {key: str(value) for key, value in given(version=version, offset=offset, limit=limit).items()}
    return Call(Request("GET", path("catalog", "rejects", name), params), _read_rejects)


def drop_dataset(fresh: Fresh, name: str) -> Call[None]:
    """Delete a dataset: every version and all its files."""
    return Call(Request("DELETE", path("catalog", "dataset", name), repeatable=False), nothing)


# --- what comes back ----------------------------------------------------------------------------------------


def dataset_of(manifest: Mapping[str, Any]) -> Dataset:
    """A dataset from its manifest, of any age."""
    return Dataset(
        name=str(manifest["name"]),
        version=int(manifest["version"]),
        row_count=manifest.get("row_count"),
        columns=tuple((column["name"], column["type"]) for column in _fields(manifest.get("schema"))),
        bytes=manifest.get("bytes"),
        rejected=int((manifest.get("rejects") or {}).get("count", 0)),
        created_at=manifest.get("created_at") or "",
        manifest=manifest,
    )


def _fields(schema: Any) -> Sequence[Mapping[str, Any]]:
    found = schema.get("fields", ()) if isinstance(schema, dict) else schema or ()
    return tuple(found)


def _read_ingested(answer: httpx.Response) -> Ingested:
    body = json_of(answer)
    return Ingested(
        dataset=dataset_of(body["manifest"]),
        published=bool(body["published"]),
        rejected=int(body["rejects"]["count"]),
        details=body,
    )


def _read_rejects(answer: httpx.Response) -> Rejects:
    body = json_of(answer)
    rejected = tuple(body["rejects"])
    return Rejects(rejected, int(body.get("count", len(rejected))))
