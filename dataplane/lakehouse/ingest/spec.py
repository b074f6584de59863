"""What an ingest is asked and what it answers: values only.

A `Source` names files, an `IngestSpec` says what they shall become, `Progress` is a number on the way, and
`IngestResult` is what came of it.  What this module does not do: read anything.
"""

import enum
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from lakehouse.core.errors import Invalid
from lakehouse.core.manifest import Manifest, checked_dataset_name
from lakehouse.core.schema import Change, Schema, SchemaPolicy
from lakehouse.ingest.formats import Format, checked_options

SOURCES_MAX = 1_000
"""Sources of one spec; each may be a pattern for many files."""
TRANSFORM_BYTES_MAX = 1 << 20


class Mode(enum.StrEnum):
    """What becomes of rows that are there already."""

    REPLACE = "replace"
    """The dataset is what the sources hold now: what vanished goes."""
    APPEND = "append"
    """What vanished stays; a source that changed replaces its own rows only."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file, or a pattern for files: a path, `file:///path`, `s3://bucket/key`, each with `*`, `?`, `[…]`, `**`.

    An upload has `uri` `upload:name` and lies at `path`, with the SHA-256 of its bytes as `etag`.
    """

    uri: str
    format: Format | None = None
    """None: guessed from the name, the content type, then the first bytes."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Reader options: `lakehouse.ingest.formats.OPTIONS`."""
    path: Path | None = None
    etag: str | None = None
    content_type: str = ""

    @property
    def reader(self) -> str:
        """Digest of format and options: what besides the bytes decides on the rows."""
        chosen = [None if self.format is None else self.format.value, dict(sorted(self.options.items()))]
        return hashlib.sha256(msgspec.json.encode(chosen)).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class IngestSpec:
    """What a dataset shall hold."""

    name: str
    sources: tuple[Source, ...]
    transform: str | None = None
    """One SELECT over the table `source`."""
    policy: SchemaPolicy = SchemaPolicy.STRICT
    fingerprint: str | None = None
    """The only schema allowed, by its fingerprint; None: `policy` alone decides."""
    mode: Mode = Mode.REPLACE
    dry_run: bool = False
    """Read and convert everything, but write nothing to the bucket and publish nothing."""
    max_rejects: int | None = None
    """Most rows that may be unreadable; None: all but one."""

    @property
    def transform_sha256(self) -> str | None:
        return None if self.transform is None else hashlib.sha256(self.transform.encode()).hexdigest()


def checked_spec(spec: IngestSpec) -> IngestSpec:
    """`spec` if it can be tried.  Raises `Invalid`."""
    checked_dataset_name(spec.name)
    if not 1 <= len(spec.sources) <= SOURCES_MAX:
        raise Invalid(f"an ingest has 1 to {SOURCES_MAX} sources. sources=`{len(spec.sources)}`")
    if spec.transform is not None and not 0 < len(spec.transform.encode()) <= TRANSFORM_BYTES_MAX:
        raise Invalid(f"a transform has 1 to {TRANSFORM_BYTES_MAX} bytes")
    if spec.max_rejects is not None and spec.max_rejects < 0:
        raise Invalid(f"max_rejects is not negative. max_rejects=`{spec.max_rejects}`")
    for source in spec.sources:
        checked_options(source.options)
    return spec


class Step(enum.StrEnum):
    """What an ingest is doing."""

    RESOLVING = "resolving"
    DOWNLOADING = "downloading"
    INFERRING = "inferring"
    CONVERTING = "converting"
    REWRITING = "rewriting"
    UPLOADING = "uploading"
    PUBLISHING = "publishing"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an ingest is; `bytes_read` is of `bytes_total` over all files that have to be read."""

    step: Step
    bytes_read: int = 0
    bytes_total: int = 0
    rows: int = 0
    """Rows written so far."""
    files: int = 0
    """Files converted so far."""
    files_total: int = 0
    source: str = ""
    """The file at hand."""

    @property
    def told(self) -> str:
        """For people: `converting, 45 %, 1,200,000 rows`."""
        rows = f"{self.rows:,} rows" if self.rows else ""
        share = f"{100 * self.bytes_read // self.bytes_total} %" if self.bytes_total else ""
        return ", ".join(part for part in (self.step.value, share, rows) if part)


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that could not be read."""

    source: str
    line: int | None
    column: str | None
    error: str
    text: str


@dataclass(frozen=True, slots=True)
class IngestResult:
    """What came of an ingest."""

    manifest: Manifest
    """The version that holds now; of a dry run, what would have been published."""
    published: bool
    """False: nothing changed, or a dry run."""
    rejects: int
    """Rows of this run that could not be read."""
    rejected: Sequence[Reject] = ()
    """The first of them."""
    changes: Sequence[Change] = ()
    """What differs from the schema of the version before."""
    files_read: int = 0
    sample: Sequence[Mapping[str, Any]] = ()
    """The first rows, as JSON values; of a dry run only."""

    @property
    def schema(self) -> Schema | None:
        return self.manifest.schema
