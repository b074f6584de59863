"""kill -9 at random moments: acknowledged is there, refused is not, the rest wholly or not at all.

Several clients write to a real server process at once, each over ids of its own, and keep a journal; a merger
moves a fresh index into the main one meanwhile; snapshots are forced.  After each restart every journal must
explain what is stored, bit for bit.  The server is killed after a random number of acknowledgements (and
sometimes again while it recovers), so no clock decides whether the test passes; the seed is printed, and
given back with `LAKEHOUSE_SEED`.
"""

import os
import secrets
from pathlib import Path

import pytest

from live_server import LiveServer
from minio_server import MinioServer
from world import World

KILLS = int(os.environ.get("LAKEHOUSE_KILLS", "10"))
"""Per store; `make soak` asks for 100."""

pytestmark = [pytest.mark.kill, pytest.mark.timeout(120 + 30 * KILLS)]


async def _run(server: LiveServer, kills: int) -> None:
    seed = int(os.environ.get("LAKEHOUSE_SEED", secrets.randbits(32)))
    print(f"seed {seed}: repeat with LAKEHOUSE_SEED={seed}")
    with server.start():
        world = World(server, seed)
        await world.create()
        for kill in range(kills):
            await world.life(server.kill)
            await world.restart()
            await world.check()
            print(f"kill {kill + 1}: {dict(world.tally.answers)}", flush=True)
    tally = world.tally
    print(f"of the writes of unknown outcome {tally.happened} had happened, {tally.did_not} had not")
    print(f"in the background: {dict(tally.background)}")
    assert tally.answers["200"] >= kills
    assert tally.answers["400"], "no nonsense was sent"


async def test_kill_on_the_local_store(tmp_path: Path) -> None:
    await _run(LiveServer(str(tmp_path / "data"), tmp_path / "server.log"), KILLS)


@pytest.mark.minio
async def test_kill_on_minio(tmp_path: Path, minio: MinioServer) -> None:
    data = f"s3://{minio.bucket}/kill-{secrets.token_hex(4)}"
    await _run(LiveServer(data, tmp_path / "server.log", env=minio.environment()), KILLS)


async def test_the_check_notices_a_store_that_forgets(tmp_path: Path) -> None:
    with LiveServer("memory:", tmp_path / "server.log").start() as server:
        world = World(server, seed=1)
        await world.create()
        await world.life(server.kill)
        server.start()
        await world.create()
        with pytest.raises(AssertionError, match=r"is missing|possible"):
            await world.check()
