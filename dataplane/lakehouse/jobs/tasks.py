"""What a process of its own may be asked to do, as JSON: build, restore or rebuild an index, or ingest a dataset.

A task names everything it needs, so that whoever repeats it does the same: the life an index shall begin is part of it.
What this module does not do: do them.
"""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import msgspec

from lakehouse.core.errors import Invalid
from lakehouse.core.types import IndexParams


class Build(msgspec.Struct, frozen=True, tag=True, tag_field="act"):
    """Begin a life with the rows of a dataset version as content; one process per shard."""

    params: IndexParams
    shards: int
    life: UUID
    dataset: str
    version: int
    id_column: str
    vector_column: str
    metadata_columns: tuple[str, ...] = ()
    owner: str | None = None
    origin: Mapping[str, Any] | None = None
    replaces: bool = False
    """Exchange it for the life there is, without a gap; False: there must be none."""
    adopts: bool = False
    """What writers gave that life before this begins goes with it; False: such a life is not replaced."""
    dataset_url: str | None = None
    """The store of the dataset, as `s3://bucket/prefix`; None: the index's own."""


class Restore(msgspec.Struct, frozen=True, tag=True, tag_field="act"):
    """Begin a life with the items of LHV1 files as content; there must be none."""

    params: IndexParams
    shards: int
    life: UUID
    files: tuple[str, ...] | None = None
    """Keys in the index's own store, one per shard that was, or …"""
    uri: str | None = None
    """… an object of a bucket, or a key: of one file, or of the record of a named snapshot."""
    owner: str | None = None
    origin: Mapping[str, Any] | None = None


class Rebuild(msgspec.Struct, frozen=True, tag=True, tag_field="act"):
    """Exchange the life of an index for one with the same items and other graph parameters."""

    params: IndexParams
    index: str


class Ingest(msgspec.Struct, frozen=True, tag=True, tag_field="act"):
    """Bring a dataset in line with its sources."""

    dataset: str
    spec: Mapping[str, Any]
    """A Dataset's `spec`, valid and defaulted."""


Task = Build | Restore | Rebuild | Ingest
_decode = msgspec.json.Decoder(Task).decode


def parse(text: str) -> Task:
    """The task in this JSON.  Raises `Invalid`."""
    try:
        task: Task = _decode(text)
    except msgspec.DecodeError as error:
        raise Invalid(f"the task cannot be read: {str(error).lower()}") from error
    if isinstance(task, Restore) and (task.files is None) == (task.uri is None):
        raise Invalid(f"a task to restore has either `files` or `uri`. index=`{task.params.name}`")
    return task
