"""A bucket in a dictionary: what tests, simulations and `--data memory:` run on.

Every call finishes within one step of the event loop, so it is atomic by construction, and costs a few
microseconds, because a simulation makes millions of them.
What it does not do: survive the process, or fail; `lakehouse.store.wrappers` adds faults and latency.
"""

import os
from bisect import bisect_left, bisect_right, insort
from collections.abc import AsyncIterator
from pathlib import Path

from lakehouse.core.errors import Conflict, Invalid, NotFound, Outcome, Unavailable
from lakehouse.core.names import checked_key
from lakehouse.store.base import BytesLike, Children, ObjectInfo, checked_range


class _Objects:
    """The bucket itself, which several `MemoryStore`s may share."""

    __slots__ = ("data", "info", "keys", "writes")

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.info: dict[str, ObjectInfo] = {}
        self.keys: list[str] = []  # sorted; code points sort as their UTF-8 bytes do
        self.writes = 0


class MemoryStore:
    """An `ObjectStore` in memory; `exclusive=False` makes it a bucket that others may write to as well."""

    def __init__(self, *, exclusive: bool = True) -> None:
        self._objects = _Objects()
        self._exclusive = exclusive
        self._closed = False

    def sibling(self) -> "MemoryStore":
        """Another store over the same objects, as a second process would have; each is closed by itself."""
        store = MemoryStore(exclusive=False)
        store._objects = self._objects
        self._exclusive = False
        return store

    @property
    def url(self) -> str:
        return "memory:"

    @property
    def exclusive(self) -> bool:
        return self._exclusive and not self._closed

    async def create(self, key: str, data: BytesLike) -> None:
        self._check_open()
        if key in self._objects.data:
            raise Conflict(f"an object is already there. key=`{key}`")
        self._write(key, data)

    async def put(self, key: str, data: BytesLike) -> None:
        self._check_open()
        self._write(key, data)

    async def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        self._check_open()
        data = self._read(key)
        if start == 0 and end is None:
            return data
        checked_range(start, end)
        return data[start:end]

    async def head(self, key: str) -> ObjectInfo:
        self._check_open()
        self._read(key)
        return self._objects.info[key]

    async def list(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> list[ObjectInfo]:
        self._check_open()
        keys, info = self._objects.keys, self._objects.info
        position = max(bisect_left(keys, prefix), bisect_right(keys, start_after))
        found: list[ObjectInfo] = []
        while position < len(keys) and keys[position].startswith(prefix):
            if limit is not None and len(found) >= limit:
                break
            found.append(info[keys[position]])
            position += 1
        return found

    async def children(self, prefix: str) -> Children:
        self._check_open()
        if prefix and not prefix.endswith("/"):
            raise Invalid(f"a prefix of children ends in `/` or is empty. prefix=`{prefix}`")
        keys = self._objects.keys
        prefixes: list[str] = []
        objects: list[ObjectInfo] = []
        position = bisect_left(keys, prefix)
        while position < len(keys) and keys[position].startswith(prefix):
            name, slash, _ = keys[position][len(prefix) :].partition("/")
            if slash:
                prefixes.append(f"{prefix}{name}/")
                position = bisect_left(
                    keys, f"{prefix}{name}0", position
                )  # `0` follows `/`: skip the subtree
            else:
                objects.append(self._objects.info[keys[position]])
                position += 1
        return Children(tuple(prefixes), tuple(objects))

    async def delete(self, key: str) -> None:
        self._check_open()
        objects = self._objects
        if objects.data.pop(key, None) is None:
            checked_key(key)
            return
        del objects.info[key]
        del objects.keys[bisect_left(objects.keys, key)]

    async def download(self, key: str, path: "os.PathLike[str]") -> ObjectInfo:
        self._check_open()
        data = self._read(key)
        _write_new(Path(path), data)
        return self._objects.info[key]

    async def upload(self, key: str, path: "os.PathLike[str]") -> None:
        self._check_open()
        self._write(key, _read_file(Path(path)))

    async def stream(self, key: str, chunk_bytes: int = 1 << 20) -> AsyncIterator[bytes]:
        self._check_open()
        data = self._read(key)
        for start in range(0, len(data), chunk_bytes):
            yield data[start : start + chunk_bytes]

    async def close(self) -> None:
        self._closed = True

    def _write(self, key: str, data: BytesLike) -> None:
        objects = self._objects
        if key not in objects.data:
            insort(objects.keys, checked_key(key))
        objects.writes += 1
        objects.data[key] = bytes(data)
        objects.info[key] = ObjectInfo(key, len(objects.data[key]), f"{objects.writes:x}")

    def _read(self, key: str) -> bytes:
        data = self._objects.data.get(key)
        if data is None:
            raise NotFound(f"no such object. key=`{checked_key(key)}`")
        return data

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the store is closed. url=`memory:`", outcome=Outcome.NOT_COMMITTED)


def _write_new(path: Path, data: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(data)
    except OSError as error:
        raise Invalid(f"cannot write the new local file. path=`{path}`") from error


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Invalid(f"cannot read the local file. path=`{path}`") from error
