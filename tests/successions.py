"""What schedules of one life that follows another are made of: processes that write, build and look.

What this module does not do: say what must hold.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import UUID

from lakehouse import building
from lakehouse.core import incarnation
from lakehouse.core.incarnation import Incarnation
from lakehouse.core.types import Batch
from lakehouse.testing.schedules import PARAMS, batch, present, value_of
from lakehouse.testing.world import Process, World, simulated_settings

SETTINGS = replace(simulated_settings(), snapshot_log_entries=10_000, write_deadline_s=60.0)
OTHER = replace(PARAMS, m=8)
RECORD_ONE = "inc/0000000001"


async def rows(values: dict[str, int]) -> AsyncIterator[Batch]:
    for item_id, value in values.items():
        await asyncio.sleep(0)
        yield batch({item_id: value})


async def contents(process: Process) -> dict[str, int]:
    collection = await present(process)
    items, _ = await collection.scroll(None, 1_000)
    return {item.id: value_of(collection, item.id) for item in items}


async def put(process: Process, values: dict[str, int], key: str | None = None) -> None:
    await (await process.indexes.open(PARAMS.name)).add(batch(values), idempotency_key=key)


async def begun(world: World, shards: int = 2) -> tuple[Process, Process]:
    """A builder and a writer that has put something."""
    builder, writer = world.start("builder"), world.start("writer")
    await writer.indexes.create(PARAMS, shards)
    await put(writer, {f"x{j}": j for j in range(6)})
    return builder, writer


async def published(process: Process, life: UUID, values: dict[str, int], shards: int = 2) -> Incarnation:
    """What the processes of one build do, in one."""
    store, runtime, settings = process.store, process.runtime, process.world.settings
    for shard in range(shards):
        await building.build_shard(store, runtime, settings, PARAMS, shards, life, shard, rows(values))
    record = incarnation.begin(0, life, PARAMS, shards, "owner", {"dataset": "d"}, seeded=True)
    return await building.publish(store, runtime, record, replaces=True)
