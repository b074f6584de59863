"""Snapshots of one shard: taken from an immutable view, put, read back, verified, and only then counted.

A snapshot replaces the log up to the position it covers, so it is believed only after every byte of it was checked.
The two newest stay; named ones are files of their own.  What this module does not do: decide when, or who may.
"""

import hashlib
import io
import logging
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from lakehouse.core import lhv1, names
from lakehouse.core.errors import Corrupt, LakehouseError, StorageFull
from lakehouse.core.lhv1 import Covered, Section
from lakehouse.core.types import IndexParams
from lakehouse.core.window import IdempotencyWindow
from lakehouse.engine_settings import EngineSettings
from lakehouse.index.shard_index import IndexView, ShardIndex
from lakehouse.replica import Replica
from lakehouse.runtime import Runtime
from lakehouse.store.base import ObjectStore

logger = logging.getLogger(__name__)

WINDOW_SECTION = "idempotency"
ENVELOPE_READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class SnapshotRef:
    """One snapshot file in the store."""

    key: str
    covered: int
    """The log position it replaces."""
    size: int


@dataclass(frozen=True, slots=True)
class Image:
    """What a snapshot will hold: gathered on the loop in one step, written in a worker."""

    params: IndexParams
    covered: Covered
    items: int
    view: IndexView
    window: bytes


def image_of(replica: Replica) -> Image:
    """An immutable picture of a replica, cheap to take."""
    return Image(
        replica.index.params,
        replica.covered(),
        len(replica.index),
        replica.index.view(),
        replica.window.to_bytes(),
    )


def write_image(out: io.BufferedIOBase, image: Image) -> bytes:
    """Write an image as an LHV1 version 3 file; its sha256."""
    sections = [*image.view.sections(), Section(WINDOW_SECTION, 0, image.window)]
    return lhv1.write_v3(out, image.params, image.covered, image.items, sections)  # type: ignore[arg-type]


def replica_of(data: memoryview, settings: EngineSettings) -> Replica:
    """Verify a version 3 file and stand a replica up over it, zero copy.  Raises `Corrupt`."""
    snapshot = lhv1.read_v3(data)
    window = IdempotencyWindow()
    sections: list[Section] = []
    for section in snapshot.sections:
        if section.kind == WINDOW_SECTION:
            window = IdempotencyWindow.from_bytes(section.data)
        else:
            sections.append(section)
    index = ShardIndex.restore(snapshot.params, settings.index, settings.scratch, sections)
    if len(index) != snapshot.items:
        raise Corrupt(f"snapshot holds another number of items than it says. items=`{snapshot.items}`")
    covered = snapshot.covered
    replica = Replica(snapshot.params, covered.incarnation.bytes, covered.shard, index, window)
    replica.start_from(covered)
    return replica


class ShardSnapshots:
    """The snapshot files of one shard."""

    def __init__(
        self,
        store: ObjectStore,
        runtime: Runtime,
        settings: EngineSettings,
        name: str,
        incarnation: UUID,
        shard: int,
    ) -> None:
        self.store = store
        self.runtime = runtime
        self.settings = settings
        self.name = name
        self.incarnation = incarnation
        self.shard = shard
        self.verified: set[str] = set()
        """Keys this process read back whole and found right; only these let garbage be collected."""

    async def refs(self) -> list[SnapshotRef]:
        """Every snapshot in the store, newest first."""
        found = await self.store.list(names.snapshot_prefix(self.name, self.incarnation, self.shard))
        refs = [SnapshotRef(info.key, names.sequence_of(info.key), info.size) for info in found]
        return sorted(refs, key=lambda ref: (ref.covered, ref.key), reverse=True)

    async def load(self, ref: SnapshotRef) -> Replica:
        """A replica from one snapshot.  Raises `NotFound` when it was retired meanwhile, `Corrupt`."""
        data = await self._fetch(ref.key)
        replica = await self.runtime.run_cpu(replica_of, data, self.settings)
        covered = replica.position
        if (
            replica.incarnation != self.incarnation.bytes
            or replica.shard != self.shard
            or covered != ref.covered
        ):
            raise Corrupt(f"snapshot is another's. key=`{ref.key}`")
        self.verified.add(ref.key)
        return replica

    async def digest_of(self, ref: SnapshotRef) -> bytes:
        """The chain digest a snapshot records, from its envelope alone.  Raises `NotFound`, `Corrupt`."""
        head = await self.store.get(ref.key, 0, ENVELOPE_READ_BYTES)
        size = lhv1.envelope_end(head)
        if size > len(head):
            head = await self.store.get(ref.key, 0, size)
        return lhv1.covered_of(head).digest

    async def write(self, image: Image, writer: UUID) -> tuple[SnapshotRef, Path | bytes]:
        """Put a snapshot, read it back, verify it; its reference, and its bytes or the file that holds them.

        Raises `Corrupt` when what came back is not what was put.  The caller removes the file.
        """
        covered = image.covered.sequence
        key = names.snapshot_key(self.name, self.incarnation, self.shard, covered, writer)
        ref, content = await self.write_under(key, image)
        self.verified.add(key)
        return ref, content

    async def write_under(self, key: str, image: Image) -> tuple[SnapshotRef, Path | bytes]:
        """As `write`, under a key of the caller's."""
        scratch = self.settings.scratch
        if scratch is None:
            out = io.BytesIO()
            digest = await self.runtime.run_cpu(write_image, out, image)
            data = out.getvalue()
            await self.store.put(key, data)
            await self._verify(key, digest)
            return SnapshotRef(key, image.covered.sequence, len(data)), data
        path = scratch / f"snapshot-{self.runtime.uuid().hex}"
        try:
            digest = await self.runtime.run_io(_write_file, path, image)
            await self.store.upload(key, path)
            await self._verify(key, digest)
            return SnapshotRef(key, image.covered.sequence, path.stat().st_size), path
        except BaseException as error:
            path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise StorageFull(f"a snapshot cannot be written: {error}. path=`{path}`") from error
            raise

    async def put(self, key: str, content: Path | bytes) -> None:
        """Write a file that `write` made under another key as well."""
        if isinstance(content, bytes):
            await self.store.put(key, content)
        else:
            await self.store.upload(key, content)

    async def copy(self, ref: SnapshotRef, key: str) -> None:
        """Write a stored snapshot under another key as well.  Raises `NotFound` when it was retired meanwhile."""
        if self.settings.scratch is None:
            await self.store.put(key, await self.store.get(ref.key))
            return
        path = self.settings.scratch / f"copied-{self.runtime.uuid().hex}"
        try:
            await self.store.download(ref.key, path)
            await self.store.upload(key, path)
        finally:
            await self.runtime.run_io(path.unlink, missing_ok=True)

    async def _verify(self, key: str, digest: bytes) -> None:
        data = await self._fetch(key)
        seen = await self.runtime.run_io(_verified_digest, data)
        if seen != digest:
            raise Corrupt(f"snapshot read back differs from what was put. key=`{key}`")

    async def _fetch(self, key: str) -> memoryview:
        return await fetched(self.store, self.runtime, self.settings.scratch, key)

    async def retire(self, refs: Sequence[SnapshotRef]) -> None:
        """Delete snapshots that nothing needs any more."""
        for ref in refs:
            await self.store.delete(ref.key)
            self.verified.discard(ref.key)


async def fetched(store: ObjectStore, runtime: Runtime, scratch: Path | None, key: str) -> memoryview:
    """An object's bytes: mapped from a file of its own when there is a scratch directory.  Raises `NotFound`."""
    if scratch is None:
        return memoryview(await store.get(key))
    path = scratch / f"fetched-{runtime.uuid().hex}"
    try:
        await store.download(key, path)
        return await runtime.run_io(_map_file, path)
    finally:
        await runtime.run_io(path.unlink, missing_ok=True)


def _write_file(path: Path, image: Image) -> bytes:
    with path.open("wb") as out:
        return write_image(out, image)


def _map_file(path: Path) -> memoryview:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))


def _verified_digest(data: memoryview) -> bytes:
    try:
        lhv1.read_v3(data)
    except LakehouseError:
        return b""
    return hashlib.sha256(data).digest()
