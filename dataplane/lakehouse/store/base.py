"""Six plain calls are all that durability rests on.

Recovery trusts only `create` (create-if-absent), `get`, `list` and `delete`: what every S3-compatible store
does alike.  `put`, `upload` and `download` move bytes whose keys are unique or whose loss costs nothing.
What a store does not do: retry.  A lost answer is the caller's to resolve: only it knows its own bytes.
"""

import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from lakehouse.core.errors import Invalid

BytesLike = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a listing says of one object."""

    key: str
    size: int
    """Bytes."""
    etag: str = ""
    """Opaque, may be empty; equal bytes may share one."""


@dataclass(frozen=True, slots=True)
class Children:
    """One level of a hierarchy whose separator is `/`."""

    prefixes: tuple[str, ...]
    """Full prefixes, each ending in `/`."""
    objects: tuple[ObjectInfo, ...]


class ObjectStore(Protocol):
    """A bucket, or what behaves as one.

    Keys are UTF-8, `/`-separated, without empty, `.` or `..` segments, at most 1,024 bytes; listings are in
    order of the keys' UTF-8 bytes.

    Every call may raise `Unavailable` (with its `outcome`), `StorageFull`, or `CredentialsRefused`.
    """

    @property
    def url(self) -> str:
        """Where this is, without secrets: `file:///…`, `s3://bucket/prefix`, `memory:`."""
        ...

    @property
    def exclusive(self) -> bool:
        """Whether no other process can write here while this one lives (a held lock, or memory)."""
        ...

    async def create(self, key: str, data: BytesLike) -> None:
        """Write all of `data` under `key` if nothing is there, atomically and durably.

        Raises `Conflict` if something is; `Unavailable(UNKNOWN)` if it may have been written.
        """
        ...

    async def put(self, key: str, data: BytesLike) -> None:
        """Write or overwrite `key` atomically and durably."""
        ...

    async def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """The bytes from `start` up to `end`, cut at the object's size as a slice is.  Raises `NotFound`."""
        ...

    async def head(self, key: str) -> ObjectInfo:
        """Raises `NotFound`."""
        ...

    async def list(
        self, prefix: str, *, start_after: str = "", limit: int | None = None
    ) -> Sequence[ObjectInfo]:
        """Objects whose key starts with `prefix` and sorts after `start_after`; all, or the first `limit`."""
        ...

    async def children(self, prefix: str) -> Children:
        """The level below `prefix` (which ends in `/` or is empty)."""
        ...

    async def delete(self, key: str) -> None:
        """Remove `key`; no error when it is missing."""
        ...

    async def download(self, key: str, path: "os.PathLike[str]") -> ObjectInfo:
        """Bring `key` to the new file `path`, which may share the store's own inode.  Raises `NotFound`."""
        ...

    async def upload(self, key: str, path: "os.PathLike[str]") -> None:
        """Write or overwrite `key` with the file's bytes, atomically and durably, in bounded memory."""
        ...

    def stream(self, key: str, chunk_bytes: int = 1 << 20) -> AsyncIterator[bytes]:
        """The object in chunks, in bounded memory.  Raises `NotFound` at the first step."""
        ...

    async def close(self) -> None:
        """Release the lock and the connections; the store answers nothing afterwards."""
        ...


def checked_range(start: int, end: int | None) -> None:
    """Refuse what `get` has no meaning for: positions before the object, or an end before its start."""
    if start < 0 or (end is not None and end < start):
        raise Invalid(
            f"a range starts at 0 or later and does not end before it starts. range=`{start}:{end}`"
        )


def is_key_folder(folder: str) -> bool:
    """Whether keys can lie below `folder`, which is empty or ends in `/`; else its listing is empty."""
    return "\0" not in folder and all(part not in ("", ".", "..") for part in folder.split("/")[:-1])
