"""Durations as resources write them: `720h`, `1h30m`, `45s`.

Whole hours, minutes and seconds, largest first, none of them zero: one way to write each unit, and no empty wish.
What this module does not do: days and months, whose length depends on the calendar; that is what schedules are for.
"""

import re
from datetime import timedelta

from lakehouse.core.errors import Invalid

PATTERN = r"^([1-9][0-9]{0,5}h)?([1-9][0-9]{0,5}m)?([1-9][0-9]{0,5}s)?$"
"""As in the resource definitions, which also ask for at least two characters."""
_DURATION = re.compile(PATTERN)
_UNITS = ("hours", "minutes", "seconds")


def parse(text: str) -> timedelta:
    """`text` as a length of time.  Raises `Invalid`."""
    found = _DURATION.fullmatch(text)
    if found is None or not text:
        raise Invalid(
            f"a duration is written in hours, minutes and seconds, such as `1h30m`. duration=`{text}`"
        )
    return timedelta(
        **{unit: int(part[:-1]) for unit, part in zip(_UNITS, found.groups(), strict=True) if part}
    )


def render(length: timedelta) -> str:
    """The shortest text that `parse` reads as `length`, in whole seconds; `0s` for none, for people only."""
    seconds = int(length.total_seconds())
    parts = zip((seconds // 3_600, seconds % 3_600 // 60, seconds % 60), "hms", strict=True)
    return "".join(f"{number}{unit}" for number, unit in parts if number) or "0s"
