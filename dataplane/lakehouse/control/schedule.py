"""When a schedule fires: cron in a time zone, without a clock of its own.

Five fields, as Debian's cron reads them, in an IANA zone: a time that a change to summer skips fires right after it, a
time that the change back repeats fires once.  Every function takes the times it compares; all of them are UTC with a
time zone, and so is what comes back.  What this module does not do: wait, or remember when it last fired.
"""

import functools
import hashlib
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from lakehouse.core.errors import Invalid

NAME_MAX = 63
"""Characters of a scheduled snapshot's name: it is a label's value as well, and Kubernetes allows those 63."""
_STAMP = "%Y%m%d%H%M%S"
_SOME_DAY = datetime(2000, 1, 1)
"""Where the check that a schedule fires at all begins; any time does, as cronsim looks 50 years ahead."""
_CHANGE_MAX = timedelta(hours=3)
"""No zone's clock has been changed by more at once since 2000, but for whole days in the Pacific."""


def check(expression: str, zone: str) -> None:
    """Raises `Invalid` where the expression or the zone cannot be read, or the schedule never fires."""
    _checked(expression, zone)


def check_zone(zone: str) -> None:
    """Raises `Invalid` where there is no such time zone."""
    _zone(zone)


def next_after(expression: str, zone: str, moment: datetime) -> datetime:
    """The first firing after `moment`.  Raises `Invalid`."""
    _checked(expression, zone)
    return _nearest(expression, _zone(zone), moment, forward=True)


def latest_until(expression: str, zone: str, moment: datetime) -> datetime:
    """The last firing at or before `moment`.  Raises `Invalid`."""
    _checked(expression, zone)
    return _nearest(expression, _zone(zone), moment, forward=False)


def due(expression: str, zone: str, last: datetime, now: datetime) -> datetime | None:
    """The firing to make up for: the newest one after `last` and not after `now`, or None.

    However many were missed, one run makes up for all of them.  Raises `Invalid`.
    """
    newest = latest_until(expression, zone, now)
    return newest if newest > last else None


def fires_at(expression: str, zone: str, moment: datetime) -> bool:
    """Whether `moment` is one of its firings.  Raises `Invalid`."""
    return latest_until(expression, zone, moment) == moment


# cronsim walks over wall-clock times without a zone, where going forward and back agree; which instants such a time is
# in a zone is decided here.


def _nearest(expression: str, zone: ZoneInfo, moment: datetime, *, forward: bool) -> datetime:
    sign = 1 if forward else -1
    moment = moment.astimezone(UTC).replace(microsecond=0)
    # Where the clock is being changed, wall-clock order is not the order of instants: begin earlier, and look further.
    around = {
        (moment + step).astimezone(zone).utcoffset() for step in (-_CHANGE_MAX, timedelta(), _CHANGE_MAX)
    }
    slack = _CHANGE_MAX if len(around) > 1 else timedelta()
    start = moment.astimezone(zone).replace(tzinfo=None) - sign * slack
    # A walk leaves out where it starts.  Back, `moment` itself counts; forward, it does not.
    walk = CronSim(expression, start if forward else start + timedelta(seconds=1), reverse=not forward)
    best: datetime | None = None
    for wall in walk:
        if best is not None and sign * (wall - best.astimezone(zone).replace(tzinfo=None)) >= slack:
            return best
        there = [
            one for one in _instants(expression, zone, wall) if (one > moment if forward else one <= moment)
        ]
        best = min(filter(None, (best, *there)), key=lambda one: sign * (one - moment), default=None)
        if best is not None and not slack:
            return best
    if best is None:
        raise Invalid(f"the schedule never fires. schedule=`{expression}`")
    return best


def _instants(expression: str, zone: ZoneInfo, wall: datetime) -> list[datetime]:
    """When the clock in `zone` shows `wall` and the schedule means it.

    As with Debian's cron, a schedule of fixed times fires once also where the clock skips or repeats them; one with `*`
    for its minute or hour goes by what the clock shows.
    """
    first, second = (wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    skipped = first.astimezone(zone).replace(tzinfo=None) != wall
    if any(field.startswith("*") for field in expression.split(" ")[:2]):
        return [] if skipped else sorted({first, second})
    return [_end_of_gap(zone, second, first)] if skipped else [first]


def _end_of_gap(zone: ZoneInfo, before: datetime, after: datetime) -> datetime:
    """The first instant after the clock was put forward, between two instants around that, to the second."""
    offset = after.astimezone(zone).utcoffset()
    while after - before > timedelta(seconds=1):
        middle = before + (after - before) // 2
        if middle.astimezone(zone).utcoffset() == offset:
            after = middle
        else:
            before = middle
    return after.replace(microsecond=0)


@functools.lru_cache(maxsize=1_024)
def _checked(expression: str, zone: str) -> None:
    _zone(zone)
    if len(expression.split(" ")) != 5:
        raise Invalid(
            "a schedule has five fields: minute, hour, day of month, month, day of week. "
            f"schedule=`{expression}`"
        )
    try:
        CronSim(_in_any_month(expression), _SOME_DAY)
    except CronSimError as error:
        raise Invalid(
            f"the schedule cannot be read: {str(error).lower()}. schedule=`{expression}`"
        ) from error
    try:
        next(CronSim(expression, _SOME_DAY))
    except (CronSimError, StopIteration) as error:
        never = "bad month" not in str(error).lower()
        why = "the schedule never fires" if never else "the schedule cannot be read: bad month"
        raise Invalid(f"{why}. schedule=`{expression}`") from error


def _in_any_month(expression: str) -> str:
    """Tells a day that no month has from one that only the months asked for do not have."""
    fields = expression.split(" ")
    return " ".join((*fields[:3], "*", fields[4]))


@functools.lru_cache(maxsize=256)
def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:  # absent; a path out of the database; a directory of it
        raise Invalid(f"no such time zone; it is named as in the IANA database. timeZone=`{name}`") from error


def snapshot_name(index: str, moment: datetime) -> str:
    """What the snapshot scheduled for `moment` is called: `<index>-<yyyymmddhhmmss>`, in UTC.

    The same for the same firing, whoever computes it; where it would be longer than 63 characters, the index's name is
    cut and a hash of it put in.
    """
    stamp = moment.astimezone(UTC).strftime(_STAMP)
    room = NAME_MAX - len(stamp) - 1
    if len(index) > room:
        digest = hashlib.sha256(index.encode()).hexdigest()[:8]
        index = f"{index[: room - 9].rstrip('-.')}-{digest}"
    return f"{index}-{stamp}"
