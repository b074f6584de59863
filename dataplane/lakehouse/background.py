"""Building segments of an index off the event loop: in the one worker of low priority, and stopped when nobody waits.

What it does not do: decide what is worth building (`lakehouse.index.tiers`) or when (`lakehouse.shard`).
"""

from collections.abc import Callable

from lakehouse.index.shard_index import ShardIndex
from lakehouse.runtime import Runtime

ROUNDS_MAX = 64
"""Builds that settle one index: the first takes all rows without a graph, each later one merges what is left."""


def always() -> bool:
    """An index that nobody exchanges."""
    return True


async def build_once(
    index: ShardIndex, runtime: Runtime, threads: int, *, idle: bool, current: Callable[[], bool] = always
) -> bool:
    """Build what `index` finds worth building; whether there was anything.

    `current` says whether the index still counts when the build is done: one that was replaced is left alone.
    """
    plan = index.maintenance(idle=idle)
    if plan is None:
        return False
    try:
        built = await runtime.run_background(plan.run, threads)
    finally:
        plan.stop.set()  # a cancelled caller leaves the worker with something to notice
    if current():
        index.install(built)
    return True


async def settle(index: ShardIndex, runtime: Runtime, threads: int) -> None:
    """Build until an idle index has nothing left to build."""
    for _ in range(ROUNDS_MAX):
        if not await build_once(index, runtime, threads, idle=True):
            return
