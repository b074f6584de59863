"""Ten thousand random worlds: crashes, stalls, lost answers, late effects, merges; nothing acknowledged is lost."""

import logging
import os
from collections.abc import Iterator

import pytest

from lakehouse.testing.schedules import run_schedule

SCHEDULES = int(os.environ.get("LAKEHOUSE_SCHEDULES", "10000"))
"""Schedules in one run; `make soak` asks for more."""
PARTS = 40
"""Tests they are spread over, so that workers share them."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Storms warn thousands of times; the report of a failure names its seed instead."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("part", range(PARTS))
def test_no_random_schedule_loses_an_acknowledged_write(part: int) -> None:
    for seed in range(part, SCHEDULES, PARTS):
        run_schedule(seed)
