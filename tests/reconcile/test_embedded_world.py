"""Whatever was applied, written, published and killed: one process comes to rest, and the rest is what was wanted."""

import asyncio
import contextlib
import itertools
import random
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converging import DIMENSION, CountingWorld, Lake, built, dataset, document, index, put_rows
from lakehouse.control import schedule
from lakehouse.control.state import ADOPT_ANNOTATION, REFRESH_ANNOTATION
from lakehouse.core import manifest
from lakehouse.core import names as keys
from lakehouse.core.errors import Conflict, LakehouseError
from lakehouse.core.types import Batch, Distance, IndexParams
from lakehouse.embedded.controller import WATCH_SHARED_S
from lakehouse.testing.world import Fault, Weather, run

RESYNC_S = 700.0
"""Two resyncs and more."""
ROWS = [("a", [1.0, 2.0]), ("b", [2.0, 3.0]), ("c", [4.0, 5.0])]
QUICK = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
EVERYTHING = (
    dataset("d"),
    built("followed", "d"),
    built("main", "d", "Once"),
    index("fresh", drain={"into": "main", "maxItems": 2, "maxAge": "20s", "onConflict": "Replace"}),
    document("IndexSnapshot", "kept", {"indexRef": {"name": "followed"}}),
    index("restored", bootstrap={"snapshot": {"name": "kept"}}),
)


def params(name: str) -> IndexParams:
    return IndexParams(name, DIMENSION, distance=Distance.EUCLIDEAN)


def items(*ids: str) -> Batch:
    vectors = np.array([[j + 1.0, 9.0] for j in range(len(ids))], dtype=np.float32)
    return Batch(ids, vectors, (b"{}",) * len(ids))


def annotated(wanted: Mapping[str, Any], **annotations: str) -> dict[str, Any]:
    metadata = {**wanted["metadata"], "annotations": annotations}
    return {**wanted, "metadata": metadata}


async def nothing_more_is_written(lake: Lake) -> None:
    before = lake.world.writes
    await asyncio.sleep(RESYNC_S)
    assert lake.world.writes == before, await lake.summary()


async def refreshed(lake: Lake, version: int, rows: list[tuple[str, list[float]]]) -> None:
    await put_rows(lake.world, "d", rows, version)
    await lake.apply(annotated(dataset("d"), **{REFRESH_ANNOTATION: str(version)}))


def test_everything_comes_to_rest_as_wanted_and_then_nothing_is_written(tmp_path: Path) -> None:
    async def play() -> None:
        world = CountingWorld(1)
        await put_rows(world, "d", ROWS, 1)
        lake = await Lake(world, tmp_path, "one").start()
        for wanted in reversed(EVERYTHING):  # in the worst order
            assert await lake.apply(wanted) == "created"
        await lake.settle()
        for name in ("followed", "main", "fresh", "restored"):
            assert await lake.condition("VectorIndex", name, "Ready") == ("True", "AllReplicasServing")
            assert await lake.condition("VectorIndex", name, "UpToDate") == ("True", "Current")
        assert set(await lake.contents("restored")) == {"a", "b", "c"}
        await nothing_more_is_written(lake)
        for wanted in EVERYTHING:
            assert await lake.apply(wanted) == "unchanged"

    run(play)


def test_a_followed_dataset_replaces_the_index_and_a_drained_item_stays_where_it_went(tmp_path: Path) -> None:
    async def play() -> None:
        world = CountingWorld(2)
        await put_rows(world, "d", ROWS, 1)
        lake = await Lake(world, tmp_path, "one").start()
        for wanted in EVERYTHING:
            await lake.apply(wanted)
        await lake.settle()
        await (await lake.indexes.open("fresh")).add(items("x", "a"))
        await refreshed(lake, 2, [("b", [7.0, 7.0])])
        await lake.settle()
        assert set(await lake.contents("followed")) == {"b"}
        assert set(await lake.contents("main")) == {"a", "b", "c", "x"}
        assert await lake.contents("fresh") == {}
        assert set(await lake.contents("restored")) == {"a", "b", "c"}
        await nothing_more_is_written(lake)

    run(play)


@pytest.mark.parametrize("name", ["products.json", "é" * 101], ids=["suffix", "bytes"])
def test_an_index_of_what_can_be_no_dataset_is_told_so_and_then_nothing_is_written(
    tmp_path: Path, name: str
) -> None:
    async def play() -> None:
        lake = await Lake(CountingWorld(5), tmp_path, "one").start()
        await lake.apply(built("main", name))
        await lake.settle()
        found = await lake.condition("VectorIndex", "main", "SourceResolved")
        assert found == ("False", "DatasetNotUsable")
        await nothing_more_is_written(lake)

    run(play)


def test_one_item_waits_for_its_age_and_is_drained_then(tmp_path: Path) -> None:
    async def play() -> None:
        lake = await Lake(CountingWorld(3), tmp_path, "one").start()
        await lake.apply(index("main"))
        await lake.apply(index("fresh", drain={"into": "main", "maxItems": 10, "maxAge": "5m"}))
        await lake.settle()
        await (await lake.indexes.open("fresh")).add(items("x"))
        await asyncio.sleep(280)
        assert set(await lake.contents("fresh")) == {"x"}
        await lake.settle()
        assert (await lake.contents("fresh"), set(await lake.contents("main"))) == ({}, {"x"})

    run(play)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([("a", [1.0, 2.0]), ("a", [2.0, 3.0])], "`a`"),
        ([("a", [1.0, 2.0]), ("bad", [1.0])], "`bad`"),
        ([("a", [1.0, 2.0]), ("bad", [1.0, float("nan")])], "`bad`"),
        ([("a", [1.0, 2.0]), ("bad", None)], "`bad`"),
        ([("a", [1.0, 2.0]), ("", [1.0, 2.0])], "row=`1`"),
    ],
    ids=["duplicate id", "wrong length", "not a number", "no vector", "no id"],
)
def test_rows_that_cannot_be_items_are_named_and_the_version_before_goes_on(
    tmp_path: Path, rows: list[Any], told: str
) -> None:
    async def play() -> None:
        world = CountingWorld(4)
        await put_rows(world, "d", ROWS, 1)
        lake = await Lake(world, tmp_path, "one").start()
        await lake.apply(dataset("d"))
        await lake.apply(built("followed", "d"))
        await lake.settle()
        before = await lake.contents("followed")
        await refreshed(lake, 2, rows)
        await lake.until(
            lambda: _is(lake.condition("VectorIndex", "followed", "UpToDate"), ("False", "BuildFailed"))
        )
        conditions = (await lake.embedded.item("vix", "followed"))["status"]["conditions"]
        message = next(one["message"] for one in conditions if one["type"] == "UpToDate")
        assert told in message
        assert await lake.contents("followed") == before
        await refreshed(lake, 3, ROWS[:1])
        await lake.settle()
        assert set(await lake.contents("followed")) == {"a"}

    run(play)


async def _is(found: Awaitable[object], wanted: object) -> bool:
    return await found == wanted


def test_a_rebuild_keeps_every_item_and_what_was_built_from(tmp_path: Path) -> None:
    async def play() -> None:
        world = CountingWorld(5)
        await put_rows(world, "d", ROWS, 1)
        lake = await Lake(world, tmp_path, "one").start()
        await lake.apply(dataset("d"))
        await lake.apply(built("main", "d", "Once"))
        await lake.settle()
        await (await lake.indexes.open("main")).add(items("x"))
        before, origin = await lake.contents("main"), (await lake.indexes.open("main")).record.origin
        await lake.apply(built("main", "d", "Once", hnsw={"m": 8, "efSearch": 99}))
        await lake.settle()
        life = await lake.indexes.open("main")
        assert await lake.contents("main") == before
        assert (life.params.m, life.params.ef_search, life.record.origin) == (8, 99, origin)

    run(play)


@pytest.mark.parametrize("seed", range(3))
def test_rebuilds_that_are_stopped_at_any_moment_lose_no_write(tmp_path: Path, seed: int) -> None:
    async def play() -> None:
        world = CountingWorld(seed)
        chance = random.Random(seed)
        lake = await Lake(world, tmp_path, "one").start()
        await lake.apply(index("main"))
        await lake.settle()
        acknowledged: set[str] = set()

        async def write() -> None:
            for number in itertools.count():
                await asyncio.sleep(0.05)
                with contextlib.suppress(LakehouseError):
                    await (await lake.indexes.open("main")).add(items(f"i{number}"))
                    acknowledged.add(f"i{number}")

        writing = asyncio.ensure_future(write())
        world.weather = Weather(latency_s=0.1)
        for m in chance.choices(range(4, 30), k=60):
            await asyncio.sleep(4 * chance.random())
            await lake.apply(index("main", hnsw={"m": m}, suspend=chance.random() < 0.2))
        await lake.apply(index("main"))
        await lake.until(lambda: _is(lake.condition("VectorIndex", "main", "UpToDate"), ("True", "Current")))
        writing.cancel()
        await lake.settle()
        assert len(acknowledged) > 20
        assert acknowledged <= set(await lake.contents("main"))

    run(play)


@pytest.mark.parametrize("seed", range(3))
def test_a_source_given_later_costs_no_write_that_came_before_the_build_ended(
    tmp_path: Path, seed: int
) -> None:
    async def play() -> None:
        world = CountingWorld(seed)
        chance = random.Random(seed)
        await put_rows(world, "d", ROWS, 1)
        lake = await Lake(world, tmp_path, "one").start()
        await lake.apply(dataset("d"))
        names = [f"main{number}" for number in range(5)]
        for name in names:
            await lake.apply(index(name))
        await lake.settle()
        world.weather = Weather(latency_s=0.1)

        async def write(name: str) -> None:
            await asyncio.sleep(8 * chance.random())
            while True:
                await asyncio.sleep(0.2)
                with contextlib.suppress(LakehouseError):
                    await (await lake.indexes.open(name)).add(items("x"))
                    return

        writing = [asyncio.ensure_future(write(name)) for name in names]
        for name in names:
            await lake.apply(built(name, "d", "Once"))
        await asyncio.gather(*writing)
        await lake.settle()
        for name in names:
            told = await lake.condition("VectorIndex", name, "UpToDate")
            wanted = {"x"} if told == ("False", "NotEmpty") else {"a", "b", "c", "x"}
            assert set(await lake.contents(name)) == wanted

    run(play)


def test_an_undeclared_index_is_taken_over_and_another_owners_is_not(tmp_path: Path) -> None:
    async def play() -> None:
        lake = await Lake(CountingWorld(6), tmp_path, "one").start()
        await lake.indexes.create(params("nobodys"))
        await lake.indexes.create(params("anothers"), owner="cluster/namespace/anothers")
        for name in ("nobodys", "anothers"):
            await (await lake.indexes.open(name)).add(items("x"))
            await lake.apply(index(name))
        await lake.settle()
        assert await lake.condition("VectorIndex", "nobodys", "Ready") == ("True", "AllReplicasServing")
        assert await lake.condition("VectorIndex", "anothers", "Accepted") == ("False", "PrefixTaken")
        assert lake.embedded.declared("nobodys") is not None
        assert lake.embedded.declared("anothers") is None
        await lake.apply(annotated(index("anothers"), **{ADOPT_ANNOTATION: "true"}))
        await lake.settle()
        assert await lake.condition("VectorIndex", "anothers", "Accepted") == ("True", "Valid")
        assert set(await lake.contents("anothers")) == {"x"}

    run(play)


@pytest.mark.parametrize("policy", ["Retain", "Delete"])
def test_deleting_keeps_or_removes_the_data_as_asked(tmp_path: Path, policy: str) -> None:
    async def play() -> None:
        world = CountingWorld(7)
        await put_rows(world, "d", ROWS, 1)
        lake = await Lake(world, tmp_path, "one").start()
        await lake.apply(dataset("d", deletionPolicy=policy))
        await lake.apply(built("main", "d", deletionPolicy=policy))
        await lake.settle()
        for kind, name in (("VectorIndex", "main"), ("Dataset", "d")):
            assert await lake.process.run(lake.embedded.delete(kind, name, wait_s=60))
        await lake.settle()
        kept = policy == "Retain"
        assert await lake.embedded.items(None) == []
        assert (await lake.indexes.names() == ["main"]) is kept
        assert ((await lake.catalog.chain("d")).newest is not None) is kept
        assert lake.embedded.declared("main") is None
        assert await lake.apply(built("main", "d")) == "created"  # the name lives again
        await lake.settle()

    run(play)


def test_a_dataset_whose_manifest_is_damaged_is_deleted_and_made_anew(tmp_path: Path) -> None:
    async def play() -> None:
        world = CountingWorld(7)
        await put_rows(world, "d", ROWS, 1)
        lake = await Lake(world, tmp_path, "one").start()
        await lake.apply(dataset("d", deletionPolicy="Delete"))
        await lake.settle()
        await world.bucket.put(manifest.version_key("d", 1), b"{")
        await lake.apply(dataset("d", deletionPolicy="Delete", retention={"keepVersions": 7}))
        await lake.settle()
        assert await lake.condition("Dataset", "d", "Ready") == ("False", "Damaged")
        assert await lake.process.run(lake.embedded.delete("Dataset", "d", wait_s=60))
        assert await lake.apply(dataset("d")) == "created"
        await lake.settle()
        assert await lake.condition("Dataset", "d", "Ready") == ("True", "Published")
        assert (await lake.catalog.manifest("d")).version == 3

    run(play)


def test_a_suspended_index_answers_nothing_and_comes_back_whole(tmp_path: Path) -> None:
    async def play() -> None:
        lake = await Lake(CountingWorld(8), tmp_path, "one").start()
        await lake.apply(index("main"))
        await lake.settle()
        await (await lake.indexes.open("main")).add(items("x"))
        await lake.apply(index("main", suspend=True))
        await lake.settle()
        assert lake.indexes.suspended == {"main"}
        assert await lake.condition("VectorIndex", "main", "Ready") == ("False", "Suspended")
        lake.process.crash()
        again = await Lake(lake.world, tmp_path, "two").start()
        await again.settle()
        assert again.indexes.suspended == {"main"}
        await again.apply(index("main"))
        await again.settle()
        assert set(await again.contents("main")) == {"x"}

    run(play)


def test_two_who_apply_at_once_are_one_after_the_other_or_one_is_told(tmp_path: Path) -> None:
    async def play() -> None:
        lake = await Lake(CountingWorld(9), tmp_path, "one").start()
        answers = await asyncio.gather(
            *(lake.apply(index("main", hnsw={"efSearch": ef})) for ef in (50, 60, 70)), return_exceptions=True
        )
        assert "created" in answers
        assert all(isinstance(one, str | Conflict) for one in answers)
        await lake.settle()
        resource = await lake.embedded.item("vix", "main")
        assert int(resource["metadata"]["resourceVersion"]) == sum(isinstance(one, str) for one in answers)

    run(play)


def test_snapshots_are_taken_on_schedule_and_the_old_ones_go(tmp_path: Path) -> None:
    async def play() -> None:
        lake = await Lake(CountingWorld(10), tmp_path, "one").start()
        schedule = {"schedule": "0 * * * *", "retention": {"keepLast": 2}}
        await lake.apply(index("main", snapshots=schedule))
        await lake.settle()
        await (await lake.indexes.open("main")).add(items("x"))
        await asyncio.sleep(5 * 3_600)
        await lake.settle()
        kept = [one["metadata"]["name"] for one in await lake.embedded.items("isnap")]
        files = [found.name for found in await lake.indexes.named_snapshots("main")]
        assert (len(kept), files) == (2, sorted(kept))
        assert await lake.condition("VectorIndex", "main", "SnapshotCurrent") == ("True", "WithinSchedule")
        uri = (await lake.embedded.item("isnap", kept[-1]))["status"]["uri"]
        await lake.process.run(lake.embedded.delete("VectorIndex", "main", wait_s=60))
        await lake.apply(index("restored", bootstrap={"snapshot": {"uri": uri}}))
        await lake.apply(index("wrong", bootstrap={"snapshot": {"uri": f"{uri[:-5]}x.lhv1"}}))
        await lake.settle()
        assert set(await lake.contents("restored")) == {"x"}
        assert (await lake.condition("VectorIndex", "wrong", "Restored"))[1] == "SnapshotNotFound"

    run(play)


KEPT = {"indexRef": {"name": "main"}}


async def snapshot_status(lake: Lake, name: str) -> tuple[str, str, Mapping[str, Any]]:
    """Status and reason of `Complete`, and the whole status."""
    status, reason = await lake.condition("IndexSnapshot", name, "Complete")
    return status, reason, (await lake.embedded.item("isnap", name))["status"]


def test_a_snapshot_that_is_asked_for_again_under_its_name_is_not_the_old_one(tmp_path: Path) -> None:
    async def play() -> None:
        world = CountingWorld(14)
        lake = await Lake(world, tmp_path, "one").start()
        await lake.apply(index("main"))
        await lake.apply(document("IndexSnapshot", "kept", KEPT))
        await lake.settle()
        *complete, first = await snapshot_status(lake, "kept")
        assert complete == ["True", "Verified"]
        await asyncio.sleep(86_400)
        lake.process.crash()
        lake = await Lake(world, tmp_path, "two").start()
        await lake.settle()
        assert await snapshot_status(lake, "kept") == ("True", "Verified", first)
        assert await lake.process.run(lake.embedded.delete("IndexSnapshot", "kept", wait_s=60))
        await lake.apply(document("IndexSnapshot", "kept", KEPT | {"deletionPolicy": "Delete"}))
        await lake.settle()
        status, reason, told = await snapshot_status(lake, "kept")
        assert (status, reason) == ("False", "NameTaken")
        assert "completedAt" not in told
        await nothing_more_is_written(lake)
        assert await lake.process.run(lake.embedded.delete("IndexSnapshot", "kept", wait_s=60))
        assert [one.name for one in await lake.indexes.named_snapshots("main")] == ["kept"]
        await lake.apply(document("IndexSnapshot", "kept", KEPT, annotations={ADOPT_ANNOTATION: "true"}))
        await lake.settle()
        status, _, told = await snapshot_status(lake, "kept")
        assert (status, told["completedAt"], told["uri"]) == ("True", first["completedAt"], first["uri"])

    run(play)


def test_a_snapshot_is_kept_or_removed_by_the_policy_it_has_when_it_goes(tmp_path: Path) -> None:
    async def play() -> None:
        lake = await Lake(CountingWorld(15), tmp_path, "one").start()
        await lake.apply(index("main"))
        for name, first, then in (("a", "Retain", "Delete"), ("b", "Delete", "Retain")):
            await lake.apply(document("IndexSnapshot", name, KEPT | {"deletionPolicy": first}))
            await lake.settle()
            await lake.apply(document("IndexSnapshot", name, KEPT | {"deletionPolicy": then}))
            await lake.settle()
            assert (await snapshot_status(lake, name))[0] == "True"
            assert await lake.process.run(lake.embedded.delete("IndexSnapshot", name, wait_s=60))
        assert [one.name for one in await lake.indexes.named_snapshots("main")] == ["b"]

    run(play)


@pytest.mark.parametrize("by", ["name", "uri"])
def test_a_snapshot_that_an_index_is_still_to_be_restored_from_is_not_retired(
    tmp_path: Path, by: str
) -> None:
    async def play() -> None:
        lake = await Lake(CountingWorld(16), tmp_path, "one").start()
        schedule = {"schedule": "0 * * * *", "retention": {"keepLast": 1}}
        await lake.apply(index("main", snapshots=schedule))
        await lake.settle()
        await (await lake.indexes.open("main")).add(items("x"))
        await asyncio.sleep(3_600)
        await lake.settle()
        (taken,) = await lake.embedded.items("isnap")
        name, uri = taken["metadata"]["name"], taken["status"]["uri"]
        asked = {"name": name} if by == "name" else {"uri": uri}
        # It does not fit, so every attempt fails: between two of them nothing runs.
        await lake.apply(index("later", dimension=DIMENSION + 1, bootstrap={"snapshot": asked}))
        await asyncio.sleep(3 * 3_600)
        assert (await lake.condition("VectorIndex", "later", "Restored"))[1] == "RestoreFailed"
        assert name in [one["metadata"]["name"] for one in await lake.embedded.items("isnap")]
        assert name in [one.name for one in await lake.indexes.named_snapshots("main")]
        await lake.process.run(lake.embedded.delete("VectorIndex", "later", wait_s=60))
        await asyncio.sleep(3_600)
        await lake.settle()
        assert name not in [one.name for one in await lake.indexes.named_snapshots("main")]

    run(play)


def test_a_snapshot_deleted_while_it_is_taken_leaves_nothing(tmp_path: Path) -> None:
    async def play() -> None:
        world = CountingWorld(17)
        lake = await Lake(world, tmp_path, "one").start()
        await lake.apply(index("main"))
        await lake.settle()
        hold = world.hold(lake.process, "create", "/named/gone.json")
        await lake.apply(document("IndexSnapshot", "gone", KEPT | {"deletionPolicy": "Delete"}))
        await hold.reached.wait()
        assert [info for info in await world.bucket.list("_vectors/main/") if "/named/gone/" in info.key]
        going = asyncio.ensure_future(
            lake.process.run(lake.embedded.delete("IndexSnapshot", "gone", wait_s=60))
        )
        await asyncio.sleep(5)
        hold.release()
        assert await going
        await lake.settle()
        assert [info for info in await world.bucket.list("_vectors/main/") if "/named/" in info.key] == []

    run(play)


def test_a_snapshot_whose_record_is_damaged_is_tried_ever_more_seldom(tmp_path: Path) -> None:
    async def play() -> None:
        world = CountingWorld(18)
        lake = await Lake(world, tmp_path, "one").start()
        await lake.apply(index("main"))
        await lake.settle()
        life = (await lake.indexes.open("main")).record.uuid
        assert life is not None
        await world.bucket.put(keys.named_snapshot_key("main", life, "kept"), b"damaged")
        await lake.apply(document("IndexSnapshot", "kept", KEPT))
        await asyncio.sleep(30)
        assert await lake.condition("IndexSnapshot", "kept", "Complete") == ("False", "Retrying")
        events = await lake.embedded.events("isnap", "kept")
        assert [one["count"] for one in events if one["reason"] == "TakeSnapshotStarted"] == [1]

    run(play)


def test_an_index_whose_objects_are_gone_is_not_begun_anew_until_it_is_applied_anew(tmp_path: Path) -> None:
    async def play() -> None:
        world = CountingWorld(12)
        lake = await Lake(world, tmp_path, "one").start()
        await lake.apply(index("main"))
        await lake.settle()
        await (await lake.indexes.open("main")).add(items("x"))
        await lake.settle()
        lake.process.crash()
        for info in await world.bucket.list("_vectors/"):
            await world.bucket.delete(info.key)
        lake = await Lake(world, tmp_path, "two").start()
        await lake.settle()
        assert await lake.condition("VectorIndex", "main", "Ready") == ("False", "ContentMissing")
        assert await lake.indexes.names() == []
        await nothing_more_is_written(lake)
        await lake.process.run(lake.embedded.delete("VectorIndex", "main", wait_s=60))
        await lake.apply(index("main"))
        await lake.settle()
        assert await lake.condition("VectorIndex", "main", "Ready") == ("True", "AllReplicasServing")
        assert await lake.contents("main") == {}

    run(play)


def test_a_scheduled_name_that_another_index_has_skips_that_firing_and_is_told(tmp_path: Path) -> None:
    async def play() -> None:
        world = CountingWorld(11)
        lake = await Lake(world, tmp_path, "one").start()
        await lake.apply(index("other"))
        hour = lake.process.runtime.now().replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
        taken = schedule.snapshot_name("main", hour)
        await lake.apply(document("IndexSnapshot", taken, {"indexRef": {"name": "other"}}))
        await lake.apply(index("main", snapshots={"schedule": "0 * * * *"}))
        await asyncio.sleep((hour - lake.process.runtime.now()).total_seconds() + 60)
        assert await lake.condition("VectorIndex", "main", "SnapshotCurrent") == ("False", "NameTaken")
        await asyncio.sleep(3_600)
        assert await lake.condition("VectorIndex", "main", "SnapshotCurrent") == ("True", "WithinSchedule")
        stored = await lake.embedded.item("isnap", taken)
        assert stored["spec"]["indexRef"] == {"name": "other"}

    run(play)


def test_what_another_process_publishes_is_followed_within_seconds_and_what_it_drops_is_read_again(
    tmp_path: Path,
) -> None:
    async def play() -> None:
        world = CountingWorld(12)
        await put_rows(world, "d", ROWS, 1)
        lake = await Lake(world, tmp_path, "one").start()
        await lake.apply(dataset("d"))
        await lake.apply(built("followed", "d"))
        await lake.settle()
        await put_rows(world, "d", ROWS[:1], 2)
        stranger = Lake(world, tmp_path, "two")
        await stranger.publish("d")
        await asyncio.sleep(WATCH_SHARED_S + 15)
        assert set(await lake.contents("followed")) == {"a"}
        await lake.settle()
        await stranger.catalog.drop("d")
        await lake.settle()
        assert await lake.condition("Dataset", "d", "Ready") == ("True", "Published")
        assert await lake.condition("VectorIndex", "followed", "UpToDate") == ("True", "Current")
        await nothing_more_is_written(lake)

    run(play)


def test_a_refresh_that_does_not_end_is_stopped_and_tried_less_often(tmp_path: Path) -> None:
    async def play() -> None:
        world = CountingWorld(13)
        lake = Lake(world, tmp_path, "one", convert=_endless)
        await lake.start()
        await lake.apply(dataset("d", job={"activeDeadlineSeconds": 10}))
        await asyncio.sleep(60)
        status = (await lake.embedded.item("dset", "d"))["status"]
        fresh = next(one for one in status["conditions"] if one["type"] == "Fresh")
        assert (fresh["status"], fresh["reason"]) == ("False", "RefreshFailed")
        assert "longer than 10 s" in fresh["message"]
        assert 2 <= status["consecutiveFailures"] <= 4

    run(play)


async def _endless(*_: Any, **__: Any) -> Any:
    await asyncio.Event().wait()


# --- any order of anything

WISHES = (
    *EVERYTHING,
    built("followed", "d", hnsw={"m": 8, "efSearch": 20}),
    built("main", "d", "Once", suspend=True),
    built("main", "d", "Once", hnsw={"m": 8}),
    index("fresh"),
    index("fresh", drain={"into": "followed", "maxItems": 2}),
    index("restored", bootstrap={"snapshot": {"uri": "s3://nowhere/at/all.lhv1"}}),
    dataset("d", refresh={"suspend": True}),
)
NAMES = (*(("VectorIndex", name) for name in ("followed", "main", "fresh", "restored")), ("Dataset", "d"))
STEPS = st.one_of(
    st.tuples(st.just("apply"), st.integers(0, len(WISHES) - 1)),
    st.tuples(st.just("delete"), st.integers(0, len(NAMES) - 1)),
    st.tuples(st.just("publish"), st.integers(1, 4)),
    st.tuples(st.just("add"), st.integers(1, 3)),
    st.tuples(st.just("sleep"), st.integers(1, 30)),
    st.tuples(st.just("weather"), st.integers(0, 10)),
    st.tuples(st.just("kill"), st.just(0)),
)


async def taken(lake: Lake, step: str, value: int, scratch: Path) -> Lake:
    """One step; what is refused is refused."""
    world = lake.world
    if step == "sleep":
        await asyncio.sleep(value)
    elif step == "weather":
        world.weather = Weather(chances={Fault.LOST_ANSWER: value / 100, Fault.REFUSED: value / 100})
    elif step == "publish":
        await put_rows(world, "d", [*ROWS, ("v", [float(value), 1.0])], value)
    elif step == "kill":
        lake.process.crash()
        await asyncio.sleep(0)
        lake.process.crash()
        return await Lake(world, scratch, f"life {len(world.processes)}").start()
    else:
        with contextlib.suppress(LakehouseError):
            await _asked(lake, step, value)
    return lake


async def _asked(lake: Lake, step: str, value: int) -> None:
    if step == "apply":
        await lake.apply(WISHES[value])
    elif step == "delete":
        await lake.process.run(lake.embedded.delete(*NAMES[value], wait_s=0))
    else:
        await (await lake.indexes.open("fresh")).add(items(*(f"n{j}" for j in range(value))))


@QUICK
@given(steps=st.lists(STEPS, min_size=4, max_size=25), seed=st.integers(0, 1_000))
def test_whatever_was_done_in_whatever_weather_it_comes_to_rest(
    tmp_path: Path, steps: list[tuple[str, int]], seed: int
) -> None:
    async def play() -> None:
        world = CountingWorld(seed)
        await put_rows(world, "d", ROWS, 1)
        lake = await Lake(world, tmp_path, "life 1").start()
        for step, value in steps:
            lake = await taken(lake, step, value, tmp_path)
        world.calm()
        await asyncio.sleep(1_500)  # past the longest wait after failures, and every deletion's deadline
        await lake.settle()
        if not lake.failing:  # what cannot succeed is tried every ten minutes, and its attempts are counted
            await nothing_more_is_written(lake)
        await what_follows_is_current(lake)

    run(play)


async def what_follows_is_current(lake: Lake) -> None:
    """An index that follows a dataset, and is ours, holds exactly what its newest version does."""
    for resource in await lake.embedded.items("vix"):
        name, source = resource["metadata"]["name"], resource["spec"].get("source", {}).get("dataset", {})
        newest = (await lake.catalog.chain("d")).newest
        if source.get("follow") != "Latest" or newest is None or "deletionTimestamp" in resource["metadata"]:
            continue
        if (await lake.condition("VectorIndex", name, "Accepted"))[0] == "True":
            life = await lake.indexes.open(name)
            assert (life.record.origin or {}).get("version") == newest.version, await lake.summary()
            assert life.length == newest.row_count


# --- killed anywhere


async def story(lake: Lake) -> None:
    """What a person does; each step may be repeated."""
    for wanted in EVERYTHING:
        await lake.apply(wanted)
    await asyncio.sleep(10)
    await refreshed(lake, 2, [*ROWS, ("e", [8.0, 8.0])])
    for name in ("kept", "restored"):
        kind = "IndexSnapshot" if name == "kept" else "VectorIndex"
        await lake.apply(
            next(one for one in EVERYTHING if (one["kind"], one["metadata"]["name"]) == (kind, name))
        )
    await asyncio.sleep(10)
    while True:  # as a client does: until it is acknowledged
        try:
            await (await lake.indexes.open("fresh")).add(items("x", "y"))
            return
        except LakehouseError:
            await asyncio.sleep(1)


async def told(world: CountingWorld, scratch: Path, crash_at: int | None, applies: bool) -> Mapping[str, Any]:
    """The story, killed at one store call, and what is there at the end."""
    await put_rows(world, "d", ROWS, 1)
    world.crash_at, world.crash_applies = crash_at, applies
    lives = 0
    while True:
        lives += 1
        assert lives <= 3
        lake = Lake(world, scratch, f"life {lives}")
        if await _survived(lake, _begun_and_told):
            break
    world.crash_at = None
    await lake.settle()
    found = await lake.summary()
    await nothing_more_is_written(lake)
    return found


async def _begun_and_told(lake: Lake) -> None:
    await lake.start()
    await story(lake)
    await lake.settle()


async def _survived(lake: Lake, life: Callable[[Lake], Awaitable[None]]) -> bool:
    """Whether the process lived through it."""
    task = asyncio.ensure_future(life(lake))
    crash = asyncio.ensure_future(lake.world.crashed.wait())
    await asyncio.wait([task, crash], return_when=asyncio.FIRST_COMPLETED)
    if lake.process.alive:
        crash.cancel()
        await task
        return True
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    lake.process.crash()  # once more: a cancellation gets lost where another error comes first
    lake.world.crashed.clear()
    return False


@QUICK
@given(share=st.floats(0, 1), applies=st.booleans(), seed=st.integers(0, 1_000))
def test_killed_at_any_store_call_and_started_again_it_comes_to_the_same_rest(
    tmp_path: Path, share: float, applies: bool, seed: int
) -> None:
    calls, wanted = _undisturbed(tmp_path)

    async def play() -> None:
        world = CountingWorld(seed)
        found = await told(world, tmp_path, 1 + int(share * calls), applies)
        assert found == wanted

    run(play)


_known: list[tuple[int, Mapping[str, Any]]] = []


def _undisturbed(scratch: Path) -> tuple[int, Mapping[str, Any]]:
    """How many calls the story makes, and where it ends."""

    async def play() -> None:
        world = CountingWorld(0)
        await put_rows(world, "d", ROWS, 1)
        lake = Lake(world, scratch, "only life")
        await _begun_and_told(lake)
        _known.append((world.calls, await lake.summary()))

    if not _known:
        run(play)
    return _known[0]
