"""`make e2e-soak`: what test_under_load.py does once, again and again at random moments.  The seed is printed."""

import os
import random
import secrets
import time

import pytest

from e2e.acts import (
    DIMENSION,
    QUIET,
    drop,
    kill_operator,
    kill_writer,
    make,
    wait_for_leader,
    wait_for_replicas,
)
from e2e.load import Load
from e2e.release import Release

WRITER_KILLS = 20
OPERATOR_KILLS = 20
STORE_RESTARTS = 5
PAUSE_S_MAX = 8.0

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("LAKEHOUSE_SEED", secrets.randbits(32)))
    print(f"seed {seed}: repeat with LAKEHOUSE_SEED={seed}")
    return random.Random(seed)


def test_the_writer_is_killed_again_and_again(lakehouse: Release, chance: random.Random) -> None:
    make(lakehouse, "soaked", replicas=2)
    with Load(lakehouse, "soaked", DIMENSION, seed=chance.getrandbits(16)) as load:
        for kill in range(WRITER_KILLS):
            time.sleep(chance.random() * PAUSE_S_MAX)
            kill_writer(lakehouse, "soaked")
            load.wait_for(QUIET)
            wait_for_replicas(lakehouse, "soaked", 2)
            print(
                f"kill {kill + 1}: {load.acknowledged} acknowledged, slowest {load.slowest_s:.1f} s",
                flush=True,
            )
    assert load.failures == []
    assert load.check() > 0
    drop(lakehouse, "soaked")


@pytest.mark.ends_operator
def test_the_operator_is_killed_again_and_again(lakehouse: Release, chance: random.Random) -> None:
    """While it scales, so that it always has something half done."""
    make(lakehouse, "unled")
    with Load(lakehouse, "unled", DIMENSION, seed=chance.getrandbits(16)) as load:
        for kill in range(OPERATOR_KILLS):
            replicas = 1 + kill % 3
            lakehouse.cluster.kubectl(
                "scale", "vix/unled", f"--replicas={replicas}", namespace=lakehouse.namespace
            )
            time.sleep(chance.random() * PAUSE_S_MAX)
            kill_operator(lakehouse)
            wait_for_leader(lakehouse)
            load.wait_for(QUIET)
        lakehouse.cluster.wait_for_rollout(lakehouse.namespace, f"{lakehouse.name}-operator")
        wait_for_replicas(lakehouse, "unled", 1 + (OPERATOR_KILLS - 1) % 3)
    assert load.failures == []
    assert load.check() > 0
    drop(lakehouse, "unled")


def test_the_store_goes_away_again_and_again(lakehouse: Release, chance: random.Random) -> None:
    make(lakehouse, "adrift", replicas=2)
    with Load(lakehouse, "adrift", DIMENSION, seed=chance.getrandbits(16)) as load:
        for _ in range(STORE_RESTARTS):
            load.wait_for(QUIET)
            lakehouse.store.stop()
            time.sleep(chance.random() * PAUSE_S_MAX)
            lakehouse.store.start()
            load.wait_for(3 * QUIET, seconds=120)
    assert load.check() > 0
    lakehouse.ready("adrift")
    drop(lakehouse, "adrift")
