"""Waiting with a deadline that says what was last seen.

What this does not know: what is waited for.
"""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PAUSE_S = 0.5


def until(what: str, look: Callable[[], T], holds: Callable[[T], bool] = bool, *, seconds: float = 60.0) -> T:
    """Look again and again until it holds, and return what was seen then.

    Raises `AssertionError` with what was last seen, or why nothing could be.
    """
    deadline = time.monotonic() + seconds
    while True:
        seen: object
        try:
            seen = found = look()
            if holds(found):
                return found
        except Exception as error:  # noqa: BLE001  not there yet, not reachable yet: look again
            seen = f"{type(error).__name__}: {error}"
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:.0f} s in vain for {what}; last seen: {str(seen)[:3000]}")
        time.sleep(PAUSE_S)


def stays(what: str, look: Callable[[], T], holds: Callable[[T], bool], *, seconds: float) -> None:
    """Look again and again for so long; raises `AssertionError` at the first look that does not hold."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        seen = look()
        assert holds(seen), f"{what}: {str(seen)[:3000]}"
        time.sleep(PAUSE_S)
