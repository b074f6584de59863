"""Looks that nothing calls for are spread evenly over the interval, whatever began together."""

import asyncio
from collections import Counter
from unittest import mock

import pytest

from lakehouse.control.plan import Plan
from lakehouse.testing.world import SimRuntime, run
from lakehouse_operator.cache import Cache, Key
from lakehouse_operator.converge import Controller, next_moment_s
from lakehouse_operator.metrics import Metrics
from lakehouse_operator.settings import Settings

INTERVAL_S = 300.0
TURN_S = 0.005
SLICE_S = 15.0
KEYS = [(kind, "shop", f"many-{number}") for kind in ("VectorIndex", "Dataset") for number in range(200)]


class Idle(Controller):
    """Finds nothing to do, and remembers when it looked."""

    def __init__(self, runtime: SimRuntime) -> None:
        cache = Cache()
        settings = Settings(namespace="shop", resync_s=INTERVAL_S)
        super().__init__(settings, runtime, mock.Mock(), cache, Metrics(runtime, cache))
        self.began_s = runtime.monotonic()
        self.looks: Counter[int] = Counter()

    async def _converge(self, key: Key) -> float | None:
        self.looks[int((self._runtime.monotonic() - self.began_s) // SLICE_S)] += 1
        await self._runtime.sleep(TURN_S)
        return self._wait_s(key, Plan({}), changed=False)


def test_what_is_called_together_is_looked_at_evenly_ever_after() -> None:
    async def play() -> None:
        controller = Idle(SimRuntime(1))
        controller.queue.start()
        for key in KEYS:
            controller.queue.call(key)
        await asyncio.sleep(20 * INTERVAL_S)
        await controller.close()
        assert controller.looks[0] == len(KEYS)
        steady = [controller.looks[number] for number in range(40, 400)]
        evenly = len(KEYS) * SLICE_S / INTERVAL_S
        assert sum(steady) / len(steady) == pytest.approx(evenly, rel=0.01)
        assert max(steady) < 2 * evenly

    run(play)


@pytest.mark.parametrize("interval_s", [1.0, INTERVAL_S])
def test_each_is_looked_at_once_in_an_interval(interval_s: float) -> None:
    for key in KEYS:
        for now_s in (0.0, 5_000.0, 1e9 / 3):
            first_s = next_moment_s(key, interval_s, now_s)
            assert interval_s / 4 < first_s <= interval_s * 5 / 4
            assert next_moment_s(key, interval_s, now_s + first_s) == pytest.approx(interval_s, abs=1e-5)
