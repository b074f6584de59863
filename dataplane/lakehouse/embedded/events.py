"""What happened to a resource lately: a short ring, in which the same news counts up instead of filling it.

What this module does not do: decide what is news; plans do.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from lakehouse.control.plan import Event
from lakehouse.resources import timestamp

EVENTS_MAX = 50
"""Per resource: a day of hourly snapshots with both their events."""

Ring = tuple[Mapping[str, Any], ...]


def recorded(ring: Ring, news: Sequence[Event], now: datetime) -> Ring:
    """`ring` with the news at its end; repeated news moves there and counts."""
    for event in news:
        ring = _with(ring, event, timestamp(now))
    return ring


def _with(ring: Ring, event: Event, at: str) -> Ring:
    what = {"type": event.type.value, "reason": event.reason, "message": event.message}
    same = [old for old in ring if all(old[part] == value for part, value in what.items())]
    first, count = (same[0]["firstTimestamp"], same[0]["count"] + 1) if same else (at, 1)
    entry = {**what, "count": count, "firstTimestamp": first, "lastTimestamp": at}
    return (*(old for old in ring if old not in same), entry)[-EVENTS_MAX:]
