"""A pool of workers that is closed while it starts, at whatever moment: nothing of it stays."""

import asyncio
import gc
from pathlib import Path

import pytest
import uvloop

from lakehouse.runtime import SystemRuntime
from lakehouse.sql.workers import WorkerPool


@pytest.mark.parametrize(
    ("turns", "wait_s"), [*((turns, 0.0) for turns in range(6)), (0, 0.02), (0, 0.3), (0, 0.5)]
)
def test_a_start_that_is_cut_short_leaves_nothing(tmp_path: Path, turns: int, wait_s: float) -> None:
    """A resource that is not released would end the test by its warning."""

    async def cut_short() -> None:
        runtime = SystemRuntime(1)
        pool = WorkerPool(runtime, tmp_path, 256 << 20, 2)
        starting = asyncio.create_task(pool.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.sleep(wait_s)
        zygote = pool.zygote_pid
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await pool.close()
        assert zygote is None or not Path(f"/proc/{zygote}").exists()
        assert pool.zygote_pid is None
        runtime.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(cut_short())
    gc.collect()
