"""Live `lakehouse up` processes on a local directory."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from live_lake import LiveLake

Start = Callable[..., LiveLake]


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Start]:
    """Starts a lake with these YAML texts; all are killed at the end."""
    started: list[LiveLake] = []

    def start(*texts: str, args: tuple[str, ...] = ()) -> LiveLake:
        lake = LiveLake(tmp_path, texts, args)
        started.append(lake)
        lake.start()
        return lake

    yield start
    for lake in started:
        lake.stop()
