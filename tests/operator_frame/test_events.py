"""News as Events: told once, counted while it repeats, told anew after a while."""

from datetime import UTC, datetime, timedelta

import pytest

from kube_api_server import KubeApiServer
from lakehouse.control.plan import Event, EventType
from lakehouse.runtime import SystemRuntime
from lakehouse_operator import events
from lakehouse_operator.events import Recorder
from lakehouse_operator.kube import INDEX_SNAPSHOT, Body, Kube
from operator_frame.running import Place

pytestmark = pytest.mark.kubernetes
NEWS = Event(EventType.WARNING, "AccessDenied", "the bucket refuses us")


class Set(SystemRuntime):
    """A clock that tests set."""

    def __init__(self) -> None:
        super().__init__()
        self.at = datetime(2026, 9, 1, 12, 0, tzinfo=UTC)

    def now(self) -> datetime:
        return self.at


def times(body: Body) -> tuple[int, str, str]:
    return body["count"], body["firstTimestamp"], body["lastTimestamp"]


async def test_the_same_news_counts_up_and_other_news_is_its_own(where: Place) -> None:
    runtime = Set()
    recorder, about = Recorder(where.kube, runtime, "replica"), await where.index()
    await recorder.record(about, [NEWS])
    runtime.at += timedelta(minutes=9)
    about["metadata"]["resourceVersion"] = "123"
    await recorder.record(about, [NEWS, Event(EventType.NORMAL, "Valid", "all is well")])
    one, other = sorted(await where.events(), key=lambda body: -body["count"])
    assert times(one) == (2, "2026-09-01T12:00:00Z", "2026-09-01T12:09:00Z")
    assert (one["type"], one["reason"], one["message"]) == (
        "Warning",
        "AccessDenied",
        "the bucket refuses us",
    )
    assert one["involvedObject"] == {
        "apiVersion": about["apiVersion"],
        "kind": "VectorIndex",
        "name": "products",
        "namespace": where.namespace,
        "uid": about["metadata"]["uid"],
        "resourceVersion": "123",
    }
    assert (one["source"], one["reportingInstance"]) == ({"component": "lakehouse-operator"}, "replica")
    assert times(other) == (1, "2026-09-01T12:09:00Z", "2026-09-01T12:09:00Z")


async def test_the_same_news_much_later_is_news_again(where: Place) -> None:
    runtime = Set()
    recorder, about = Recorder(where.kube, runtime, "replica"), await where.index()
    await recorder.record(about, [NEWS, NEWS])
    runtime.at += timedelta(minutes=11)
    await recorder.record(about, [NEWS])
    (body,) = await where.events()
    assert times(body) == (1, "2026-09-01T12:11:00Z", "2026-09-01T12:11:00Z")


async def test_news_of_an_operator_before_this_one_is_not_told_twice(where: Place) -> None:
    about = await where.index()
    for name in ("a", "b"):
        await Recorder(where.kube, Set(), name).record(about, [NEWS])
    (body,) = await where.events()
    assert body["reportingInstance"] == "b"


async def test_what_is_remembered_is_bounded(where: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KNOWN_MAX", 2)
    recorder, about = Recorder(where.kube, Set(), "replica"), await where.index()
    await recorder.record(about, [Event(EventType.NORMAL, "Valid", f"news {number}") for number in range(4)])
    assert len(recorder._told) == 2
    assert len(await where.events()) == 4


async def test_a_name_that_leaves_no_room_is_cut_and_stays_its_own(where: Place) -> None:
    recorder = Recorder(where.kube, Set(), "replica")
    long = "s" * (events.NAME_MAX - 17)
    for name in (long, f"{long}-one", f"{long}-two"):
        body = await where.create(INDEX_SNAPSHOT, name, {"indexRef": {"name": "products"}})
        await recorder.record(body, [NEWS])
    found = {one["involvedObject"]["name"]: one["metadata"]["name"] for one in await where.events()}
    assert sorted(found) == [long, f"{long}-one", f"{long}-two"]
    assert found[long].startswith(f"{long}.")
    assert {len(name) for name in found.values()} == {events.NAME_MAX}


async def test_a_message_that_is_too_long_is_cut(where: Place) -> None:
    recorder = Recorder(where.kube, Set(), "replica")
    await recorder.record(await where.index(), [Event(EventType.NORMAL, "Valid", "x" * 5_000)])
    (body,) = await where.events()
    assert body["message"] == "x" * 1_024


async def test_news_that_may_not_be_written_stops_nothing(
    kube_api: KubeApiServer, where: Place, caplog: pytest.LogCaptureFixture
) -> None:
    kube = Kube(lambda: kube_api.login("stranger"))
    await Recorder(kube, Set(), "replica").record(await where.index(), [NEWS])
    assert 'cannot patch resource "events"' in caplog.text
    await kube.close()
