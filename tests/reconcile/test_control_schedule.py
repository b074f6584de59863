"""Schedules: what fires when, in zones that change their clocks."""

import itertools
import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import given
from hypothesis import strategies as st

from lakehouse.control import duration, schedule
from lakehouse.core.errors import Invalid


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


def test_a_time_the_clock_skips_fires_right_after_it() -> None:
    nightly = ("30 2 * * *", "Europe/Stockholm")
    assert schedule.next_after(*nightly, utc(2026, 3, 28, 12)) == utc(2026, 3, 29, 1)
    assert schedule.next_after(*nightly, utc(2026, 3, 29, 1)) == utc(2026, 3, 30, 0, 30)


def test_a_time_the_clock_repeats_fires_once() -> None:
    nightly = ("30 2 * * *", "Europe/Stockholm")
    assert schedule.next_after(*nightly, utc(2026, 10, 24, 12)) == utc(2026, 10, 25, 0, 30)
    assert schedule.next_after(*nightly, utc(2026, 10, 25, 0, 30)) == utc(2026, 10, 26, 1, 30)


def test_every_quarter_fires_every_quarter_also_when_the_clock_is_changed() -> None:
    for around in (utc(2026, 3, 28, 22), utc(2026, 10, 24, 22)):
        at, fired = around, []
        while at < around + timedelta(hours=8):
            at = schedule.next_after("*/15 * * * *", "Europe/Stockholm", at)
            fired.append(at)
        assert {b - a for a, b in itertools.pairwise(fired)} == {timedelta(minutes=15)}


@pytest.mark.parametrize(
    ("expression", "zone", "start"),
    [
        ("*/7 2 * * *", "Europe/Stockholm", utc(2026, 3, 28, 20)),
        ("*/7 2 * * *", "Australia/Lord_Howe", utc(2026, 4, 4, 12)),
        ("0 */6 * * *", "Australia/Lord_Howe", utc(2026, 10, 3, 8)),
        ("*/10 1 * * *", "America/New_York", utc(2026, 11, 1, 0)),
    ],
)
def test_a_schedule_by_what_the_clock_shows_fires_exactly_then(
    expression: str, zone: str, start: datetime
) -> None:
    expected = []
    for minute in range(1, 30 * 60):
        moment = start + timedelta(minutes=minute)
        shown = moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
        if next(CronSim(expression, shown - timedelta(seconds=1))) == shown:
            expected.append(moment)
    at, fired = start, []
    while (at := schedule.next_after(expression, zone, at)) < start + timedelta(hours=30):
        fired.append(at)
    assert fired == expected


moments = st.one_of(
    st.datetimes(datetime(2025, 1, 1), datetime(2028, 1, 1)),
    st.sampled_from([datetime(2026, 3, 29, 1), datetime(2026, 10, 25, 1), datetime(2026, 4, 4, 15)]).flatmap(
        lambda change: st.integers(-9_000, 9_000).map(lambda seconds: change + timedelta(seconds=seconds))
    ),
)


@given(
    st.sampled_from(
        [
            "30 2 * * *",
            "*/15 * * * *",
            "0 */6 * * *",
            "15 1-3 * * *",
            "0 3 * * 0",
            "*/7 2 * * *",
            "0 0 29 2 *",
        ]
    ),
    st.sampled_from(
        ["Europe/Stockholm", "America/New_York", "Australia/Lord_Howe", "Etc/UTC", "Antarctica/Troll"]
    ),
    moments,
)
def test_forward_and_back_agree(expression: str, zone: str, naive: datetime) -> None:
    moment = naive.replace(tzinfo=UTC)
    before = schedule.latest_until(expression, zone, moment)
    following = schedule.next_after(expression, zone, moment)
    assert before <= moment < following
    assert schedule.fires_at(expression, zone, following)
    assert schedule.latest_until(expression, zone, following - timedelta(seconds=1)) == before
    assert schedule.next_after(expression, zone, before) == following


@pytest.mark.parametrize(
    ("expression", "zone", "why"),
    [
        ("0 0 30 2 *", "Etc/UTC", "never fires"),
        ("0 0 31 4 *", "Etc/UTC", "never fires"),
        ("61 * * * *", "Etc/UTC", "bad minute"),
        ("0 0 32 * *", "Etc/UTC", "bad day-of-month"),
        ("0 0 1 13 *", "Etc/UTC", "bad month"),
        ("0 0 * * MOO", "Etc/UTC", "bad day-of-week"),
        ("* * * *", "Etc/UTC", "five fields"),
        ("0 * * * * *", "Etc/UTC", "five fields"),
        ("@daily", "Etc/UTC", "five fields"),
        ("* * * * *", "Mars/Olympus", "no such time zone"),
        ("* * * * *", "../../etc/passwd", "no such time zone"),
        ("* * * * *", "", "no such time zone"),
    ],
)
def test_what_never_fires_or_cannot_be_read_is_refused(expression: str, zone: str, why: str) -> None:
    with pytest.raises(Invalid, match=why):
        schedule.check(expression, zone)


def test_due_makes_up_for_all_that_were_missed_with_the_newest() -> None:
    hourly = ("0 * * * *", "Etc/UTC")
    assert schedule.due(*hourly, utc(2026, 5, 4, 9), utc(2026, 5, 4, 9, 59)) is None
    assert schedule.due(*hourly, utc(2026, 5, 4, 9), utc(2026, 5, 4, 10)) == utc(2026, 5, 4, 10)
    assert schedule.due(*hourly, utc(2026, 5, 1), utc(2026, 5, 4, 10, 30)) == utc(2026, 5, 4, 10)


@given(st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,80}[a-z0-9])?", fullmatch=True))
def test_snapshot_names_are_names_of_at_most_63_characters(index: str) -> None:
    at = utc(2026, 5, 4, 6)
    name = schedule.snapshot_name(index, at)
    assert len(name) <= 63
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name)
    assert name.endswith("-20260504060000")
    assert name == schedule.snapshot_name(index, at.astimezone(ZoneInfo("Asia/Tokyo")))


def test_long_names_that_begin_alike_stay_apart() -> None:
    at = utc(2026, 5, 4, 6)
    assert schedule.snapshot_name("a" * 60 + "x", at) != schedule.snapshot_name("a" * 60 + "y", at)
    assert schedule.snapshot_name("products", at) == "products-20260504060000"
    assert schedule.snapshot_name("a" * 48, at) == "a" * 48 + "-20260504060000"


@given(st.integers(1, 10**6), st.integers(0, 59), st.integers(0, 59))
def test_durations_read_as_they_are_written(hours: int, minutes: int, seconds: int) -> None:
    length = timedelta(hours=hours - 1, minutes=minutes, seconds=seconds)
    if length:
        assert duration.parse(duration.render(length)) == length


@pytest.mark.parametrize("text", ["", "5", "5 m", "5m1h", "0m", "1d", "m", "-5m", "1.5h", "5m5m"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(Invalid, match="hours, minutes and seconds"):
        duration.parse(text)
