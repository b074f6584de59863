"""Files of datasets, kept beside the process under the digest of what they are.

A file is brought in once, however many queries want it at once, and never leaves while one of them reads it.
Objects are immutable, so key, size and ETag name a content; with a local store the copy is a hard link and costs
nothing.  What this module does not do: know which files a dataset has; its manifest does.
"""

import asyncio
import contextlib
import logging
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from lakehouse.core.errors import Corrupt, NotFound
from lakehouse.runtime import Runtime
from lakehouse.store.base import ObjectStore

logger = logging.getLogger(__name__)

DOWNLOADS_AT_ONCE = 8


@dataclass(slots=True)
class _File:
    path: Path
    size: int = 0
    readers: int = 0
    coming: "asyncio.Task[None] | None" = None


class FileCache:
    """Least recently used files leave first, when all together are over `bytes_max` and nobody reads them."""

    def __init__(self, store: ObjectStore, runtime: Runtime, folder: Path, bytes_max: int) -> None:
        self._store = store
        self._runtime = runtime
        self._folder = folder
        self._bytes_max = bytes_max
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._gate = asyncio.Semaphore(DOWNLOADS_AT_ONCE)
        self.size_bytes = 0

    async def start(self) -> None:
        """An empty folder: what an earlier process left is not trusted."""
        await self._runtime.run_io(_emptied, self._folder)

    @contextlib.asynccontextmanager
    async def files(self, objects: Sequence[Mapping[str, Any]]) -> AsyncIterator[list[str]]:
        """Paths of these objects, in order, there until the context ends.

        Raises `NotFound` for an object that is gone, `Corrupt` for one of another size than its manifest says.
        """
        held = [self._hold(one) for one in objects]
        try:
            new = [one for one, entry in zip(objects, held, strict=True) if entry.coming is None]
            await self._shrink(sum(one.get("size") or 0 for one in new))
            await asyncio.gather(
                *(self._present(entry, one) for entry, one in zip(held, objects, strict=True))
            )
            yield [str(entry.path) for entry in held]
        finally:
            for entry in held:
                entry.readers -= 1
            await self._shrink()

    def _hold(self, wanted: Mapping[str, Any]) -> _File:
        name = _digest(wanted)
        entry = self._files.get(name)
        if entry is None:
            own = self._runtime.uuid().hex[
                :8
            ]  # so that removing an earlier copy, late, does not remove this one
            entry = self._files[name] = _File(self._folder / f"{name}-{own}.parquet")
        self._files.move_to_end(name)
        entry.readers += 1
        return entry

    async def _present(self, entry: _File, wanted: Mapping[str, Any]) -> None:
        if entry.coming is None or (entry.coming.done() and _failed(entry.coming)):
            entry.coming = self._runtime.spawn(self._bring(entry, wanted), name=f"fetch {wanted['key']}")
        await asyncio.shield(entry.coming)  # a query that is cancelled does not take it from the others

    async def _bring(self, entry: _File, wanted: Mapping[str, Any]) -> None:
        key = str(wanted["key"])
        async with self._gate:
            part = entry.path.with_suffix(f".{self._runtime.uuid().hex}")
            try:
                found = await self._store.download(key, part)
                if wanted.get("size") is not None and found.size != wanted["size"]:
                    raise Corrupt(f"an object has another size than its manifest says. key=`{key}`")
                await self._runtime.run_io(os.replace, part, entry.path)
            except NotFound as error:
                raise NotFound(f"an object of the dataset is gone. key=`{key}`") from error
            finally:
                await self._runtime.run_io(part.unlink, missing_ok=True)
        entry.size = found.size
        self.size_bytes += found.size

    async def _shrink(self, coming_bytes: int = 0) -> None:
        """Remove what was not read for longest until the rest fits beside what is to come; nothing that is being read
        or fetched."""
        for name, entry in list(self._files.items()):
            if self._files.get(name) is not entry:
                continue  # another removed it meanwhile
            unused = entry.readers == 0 and (entry.coming is None or entry.coming.done())
            broken = entry.coming is None or (entry.coming.done() and _failed(entry.coming))
            if unused and (broken or self.size_bytes + coming_bytes > self._bytes_max):
                del self._files[name]
                self.size_bytes -= entry.size
                await self._runtime.run_io(entry.path.unlink, missing_ok=True)

    async def close(self) -> None:
        """End what is being fetched and remove the files."""
        coming = [entry.coming for entry in self._files.values() if entry.coming is not None]
        for task in coming:
            task.cancel()
        await asyncio.gather(*coming, return_exceptions=True)
        self._files.clear()
        await self._runtime.run_io(_removed, self._folder)


def _failed(task: "asyncio.Task[None]") -> bool:
    return task.cancelled() or task.exception() is not None


def _digest(wanted: Mapping[str, Any]) -> str:
    identity = "\0".join(str(wanted.get(part, "")) for part in ("key", "etag", "size"))
    return sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def _emptied(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _clear(folder)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_file():
            path.unlink(missing_ok=True)


def _removed(folder: Path) -> None:
    with contextlib.suppress(OSError):
        _clear(folder)
        folder.rmdir()
