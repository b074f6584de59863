"""Applied resources: nobody's wish is lost, no number is used twice, and what is gone stays gone."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from lakehouse.control.plan import Event, EventType
from lakehouse.core.errors import Conflict, NotFound
from lakehouse.embedded.events import EVENTS_MAX, Ring, recorded
from lakehouse.resources import NOTHING_SEEN, REVISIONS_KEPT, Resource, Resources, Seen
from lakehouse.runtime import SystemRuntime
from lakehouse.store.memory import MemoryStore

PLURAL, NAME = "vectorindexes", "main"


def wanted(dimension: int = 2, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "lakehouse.agentview.dev/v1alpha1",
        "kind": "VectorIndex",
        "metadata": {"name": NAME, **metadata},
        "spec": {"dimension": dimension},
    }


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def resources(store: MemoryStore) -> Resources:
    return Resources(store, SystemRuntime())


async def applied(resources: Resources, document: dict[str, Any]) -> Resource:
    return await resources.apply(PLURAL, NAME, document, await resources.find(PLURAL, NAME))


async def test_a_change_of_the_spec_counts_and_one_of_a_label_does_not(resources: Resources) -> None:
    first = await applied(resources, wanted())
    labelled = await applied(resources, wanted(labels={"a": "b"}))
    changed = await applied(resources, wanted(3, labels={"a": "b"}))
    assert [(one.revision, one.generation) for one in (first, labelled, changed)] == [(1, 1), (2, 1), (3, 2)]
    assert {one.uid for one in (first, labelled, changed)} == {first.uid}
    assert await resources.get(PLURAL, NAME) == changed
    assert await resources.all_of(PLURAL) == [changed]


async def test_of_those_who_apply_at_once_one_wins_and_the_others_are_told(resources: Resources) -> None:
    answers = await asyncio.gather(
        *(resources.apply(PLURAL, NAME, wanted(number), None) for number in range(1, 6)),
        return_exceptions=True,
    )
    won = [one for one in answers if isinstance(one, Resource)]
    assert [type(one) for one in answers if not isinstance(one, Resource)] == [Conflict] * 4
    assert [await resources.find(PLURAL, NAME)] == won
    with pytest.raises(Conflict):
        await resources.apply(PLURAL, NAME, wanted(9), None)


async def test_a_writer_that_slept_while_its_number_was_used_and_removed_is_told(store: MemoryStore) -> None:
    resources = Resources(store.sibling(), SystemRuntime())
    asleep = await applied(resources, wanted())
    for number in range(2 * REVISIONS_KEPT):
        await applied(resources, wanted(number + 2))
    newest = await resources.get(PLURAL, NAME)
    with pytest.raises(Conflict, match="changed meanwhile"):
        await resources.apply(PLURAL, NAME, wanted(99), asleep)
    assert (await resources.get(PLURAL, NAME)).spec == newest.spec


async def test_deleting_is_asked_then_done_and_the_next_life_is_another(resources: Resources) -> None:
    first = await applied(resources, wanted())
    asked = await resources.ask_deletion(first)
    assert (asked.deleting, asked.gone, asked.spec) == (True, False, first.spec)
    assert await resources.ask_deletion(asked) is asked
    with pytest.raises(Conflict, match="being deleted"):
        await applied(resources, wanted(3))
    await resources.put_seen(asked, Seen({"items": 1}))
    await resources.forget(asked)
    assert await resources.find(PLURAL, NAME) is None
    assert await resources.all_of(PLURAL) == []
    with pytest.raises(NotFound):
        await resources.get(PLURAL, NAME)
    again = await applied(resources, wanted())
    assert again.uid != first.uid
    assert await resources.seen(again) == NOTHING_SEEN


@pytest.mark.parametrize("exclusive", [True, False])
async def test_what_is_gone_leaves_nothing_but_where_others_write_its_last_number(exclusive: bool) -> None:
    store = MemoryStore(exclusive=exclusive)
    resources = Resources(store, SystemRuntime())
    await resources.forget(await applied(resources, wanted()))
    left = [info.key for info in await store.list("_resources/")]
    assert left == ([] if exclusive else [f"_resources/{PLURAL}/{NAME}/{n:010}.json" for n in (1, 2)])
    assert (await applied(resources, wanted())).revision == (1 if exclusive else 3)


async def test_a_status_of_an_earlier_life_or_one_that_cannot_be_read_says_nothing(
    store: MemoryStore, resources: Resources
) -> None:
    resource = await applied(resources, wanted())
    seen = Seen({"items": 1}, ({"type": "Normal", "reason": "Ready", "message": "", "count": 1},))
    await resources.put_seen(resource, seen)
    assert await resources.seen(resource) == seen
    other = Resource(PLURAL, NAME, 1, "another", resource.body)
    assert await resources.seen(other) == NOTHING_SEEN
    await store.put(f"_resources/{PLURAL}/{NAME}/status.json", b"{")
    assert await resources.seen(resource) == NOTHING_SEEN


async def test_one_that_cannot_be_read_hides_no_other(store: MemoryStore, resources: Resources) -> None:
    resource = await applied(resources, wanted())
    await store.put(f"_resources/{PLURAL}/broken/0000000001.json", b"not JSON")
    assert await resources.all_of(PLURAL) == [resource]


NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_the_same_news_counts_up_instead_of_filling_the_ring() -> None:
    ready, other = Event(EventType.NORMAL, "Ready", "1 of 1"), Event(EventType.WARNING, "Failed", "no")
    ring: Ring = ()
    for event in (ready, other, ready, ready):
        ring = recorded(ring, [event], NOW)
    assert [(one["reason"], one["count"]) for one in ring] == [("Failed", 1), ("Ready", 3)]
    assert ring[0]["lastTimestamp"] == "2026-01-02T03:04:05Z"


def test_the_ring_keeps_the_newest() -> None:
    many = [Event(EventType.NORMAL, "N", str(number)) for number in range(EVENTS_MAX + 5)]
    ring = recorded((), many, NOW)
    assert [one["message"] for one in ring] == [str(number) for number in range(5, EVENTS_MAX + 5)]
