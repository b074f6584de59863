"""The copy of an unsharded index's newest snapshot where the old system's tools look.

It is a convenience, never trusted for recovery.  Several processes may write and remove it, so whoever touched it looks
at the records and snapshots afterwards, and does it again if they moved on.
"""

import io
from dataclasses import dataclass

from lakehouse import incarnations
from lakehouse.core import names
from lakehouse.core.entry import FIRST_ENTRY_VERSION, NO_DIGEST
from lakehouse.core.errors import NotFound
from lakehouse.core.incarnation import Incarnation
from lakehouse.core.lhv1 import Covered
from lakehouse.core.window import IdempotencyWindow
from lakehouse.engine_settings import EngineSettings
from lakehouse.index.shard_index import ShardIndex
from lakehouse.runtime import Runtime
from lakehouse.snapshots import Image, ShardSnapshots, SnapshotRef, write_image
from lakehouse.store.base import ObjectStore

ROUNDS_MAX = 4
"""Times it is done again because something moved on; the next snapshot does it anyway."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What the copy shows: a life by its record's number, and one of its snapshots (None: no snapshot yet)."""

    number: int
    snapshot: str | None


async def settle(
    store: ObjectStore, runtime: Runtime, settings: EngineSettings, name: str, shown: Shown | None = None
) -> None:
    """Make the copy what the newest record and snapshot say; nothing after a life's end, or of an index in shards.

    `shown` is what the caller has written just now, so that nothing more is done if that still holds.
    """
    for _ in range(ROUNDS_MAX):
        record = await incarnations.current(store, name)
        if record is None:
            return
        newest = await _newest(store, runtime, settings, name, record)
        wanted = Shown(record.number, newest.key if newest else None)
        if wanted == shown:
            return
        try:
            await _show(store, runtime, settings, name, record, newest)
        except NotFound:  # retired meanwhile: a newer one exists
            continue
        shown = wanted


def _files(
    store: ObjectStore, runtime: Runtime, settings: EngineSettings, name: str, record: Incarnation
) -> ShardSnapshots:
    assert record.uuid is not None
    return ShardSnapshots(store, runtime, settings, name, record.uuid, 0)


async def _newest(
    store: ObjectStore, runtime: Runtime, settings: EngineSettings, name: str, record: Incarnation
) -> SnapshotRef | None:
    if not _is_shown(record):
        return None
    refs = await _files(store, runtime, settings, name, record).refs()
    return refs[0] if refs else None


async def _show(
    store: ObjectStore,
    runtime: Runtime,
    settings: EngineSettings,
    name: str,
    record: Incarnation,
    newest: SnapshotRef | None,
) -> None:
    key = names.compatibility_key(name)
    if not _is_shown(record):
        await store.delete(key)
    elif newest is not None:
        await _files(store, runtime, settings, name, record).copy(newest, key)
    else:
        await store.put(key, await runtime.run_cpu(_empty_image, record))


def _is_shown(record: Incarnation) -> bool:
    return record.alive and record.shards == 1


def _empty_image(record: Incarnation) -> bytes:
    assert record.uuid is not None
    assert record.params is not None
    index = ShardIndex(record.params)
    covered = Covered(record.uuid, 0, 0, 0, NO_DIGEST, 0, FIRST_ENTRY_VERSION)
    out = io.BytesIO()
    write_image(out, Image(record.params, covered, 0, index.view(), IdempotencyWindow().to_bytes()))
    return out.getvalue()
