"""The named snapshots of an index over all its lives: they outlive what they were taken of.

A record names whole files, so it goes first and they go last; files without a record are what an attempt left behind.
What this module does not do: take snapshots (`lakehouse.collection`), or restore them (`lakehouse.building`).
"""

import asyncio
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from lakehouse.control.state import SnapshotRecord
from lakehouse.core import named, names
from lakehouse.core.errors import Corrupt, NotFound
from lakehouse.core.named import NamedFile
from lakehouse.core.types import Position
from lakehouse.store.base import ObjectStore

logger = logging.getLogger(__name__)

CALLS_AT_ONCE = 16
_LIFE = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class NamedSnapshot:
    """A snapshot that is kept until somebody deletes it."""

    name: str
    incarnation: UUID
    """The life it was taken of."""
    files: tuple[NamedFile, ...]
    """One per shard."""
    completed_at: datetime | None = None
    """Since when it is whole; None where its record does not tell, as older ones do not."""

    @property
    def items(self) -> int:
        return sum(file.items for file in self.files)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def keys(self) -> tuple[str, ...]:
        """Its files in the order of shards: what `restore` takes."""
        return tuple(file.key for file in sorted(self.files, key=lambda file: file.shard))


def record_of(
    store: ObjectStore, index: str, found: NamedSnapshot, known: datetime | None = None
) -> SnapshotRecord:
    """As decisions see it: one file by its own URI, several by that of the record that names them.

    `known` says since when it is whole where its record does not.
    """
    files = sorted(found.files, key=lambda file: file.shard)
    record = names.named_snapshot_key(index, found.incarnation, found.name)
    return SnapshotRecord(
        uri=f"{store.url.rstrip('/')}/{files[0].key if len(files) == 1 else record}",
        digest=".".join(file.digest for file in files),
        position=str(Position(found.incarnation, tuple(file.sequence for file in files))),
        items=found.items,
        size=found.size,
        completed_at=found.completed_at or known,
    )


async def lives(store: ObjectStore, name: str) -> list[UUID]:
    """Every life that left anything in the store."""
    level = await store.children(names.index_prefix(name))
    found = (prefix.rstrip("/").rsplit("/", 1)[1] for prefix in level.prefixes)
    return sorted(UUID(part) for part in found if _LIFE.fullmatch(part))


async def kept(store: ObjectStore, name: str) -> list[NamedSnapshot]:
    """All named snapshots of all lives, by name; one whose record cannot be read is left out."""
    gate = asyncio.Semaphore(CALLS_AT_ONCE)

    async def of_life(uuid: UUID) -> list[NamedSnapshot]:
        prefix = names.named_prefix(name, uuid)
        async with gate:
            records = (await store.children(prefix)).objects
        keys = [info.key for info in records if info.key.endswith(".json")]
        return [found for found in await asyncio.gather(*(read(key, uuid) for key in keys)) if found]

    async def read(key: str, uuid: UUID) -> NamedSnapshot | None:
        snapshot = key.rsplit("/", 1)[1].removesuffix(".json")
        try:
            async with gate:
                data = await store.get(key)
            return NamedSnapshot(snapshot, uuid, named.decode(data), named.completed_at(data))
        except NotFound:  # deleted meanwhile
            return None
        except Corrupt as error:
            logger.error("a named snapshot's record cannot be read. key=%s error=%s", key, error)
            return None

    parts = await asyncio.gather(*(of_life(uuid) for uuid in await lives(store, name)))
    return sorted(
        (found for part in parts for found in part), key=lambda found: (found.name, found.incarnation)
    )


async def left_behind(
    store: ObjectStore, name: str, snapshot: str, incarnation: UUID, *, was_whole: bool
) -> bool:
    """Whether a snapshot without a record that can be read left anything in the store.

    A record that cannot be read, and all under its name, is the snapshot's only if that was whole before; else it may
    be anybody's.
    """
    if await _has_record(store, names.named_snapshot_key(name, incarnation, snapshot)):
        return was_whole
    return bool(await store.list(names.named_prefix(name, incarnation, snapshot), limit=1))


async def _has_record(store: ObjectStore, record: str) -> bool:
    return any(info.key == record for info in await store.list(record))


async def delete(store: ObjectStore, name: str, snapshot: str, incarnation: UUID | None = None) -> None:
    """Delete a named snapshot, and what failed attempts at it left: of one life, or of every life that has it.

    The record goes first.  Raises `NotFound` when there is neither record nor file, `Invalid` for a name that is none.
    """
    named.checked_name(snapshot)
    wanted = [incarnation] if incarnation is not None else await lives(store, name)
    found = await asyncio.gather(*(_delete_of(store, name, snapshot, uuid) for uuid in wanted))
    if not any(found):
        raise NotFound(f"no such snapshot. index=`{name}` snapshot=`{snapshot}`")


async def _delete_of(store: ObjectStore, name: str, snapshot: str, uuid: UUID) -> bool:
    """Whether there was anything."""
    record = names.named_snapshot_key(name, uuid, snapshot)
    there = await _has_record(store, record)
    if there:
        await store.delete(record)
    files = [info.key for info in await store.list(names.named_prefix(name, uuid, snapshot))]
    for start in range(0, len(files), CALLS_AT_ONCE):
        await _delete_all(store, files[start : start + CALLS_AT_ONCE])
    return there or bool(files)


async def _delete_all(store: ObjectStore, keys: Sequence[str]) -> None:
    await asyncio.gather(*(store.delete(key) for key in keys))
