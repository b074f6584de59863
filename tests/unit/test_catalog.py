"""The catalog: create-only versions, races settled by the store, the old system's manifests adopted."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import pytest

from lakehouse.catalog import Catalog
from lakehouse.core import manifest
from lakehouse.core.errors import Conflict, Corrupt, Invalid, NotFound, Outcome, Unavailable
from lakehouse.core.manifest import Registration, SourceEntry, checked_registration
from lakehouse.core.schema import Field, Schema
from lakehouse.runtime import SystemRuntime
from lakehouse.store.base import BytesLike
from lakehouse.store.memory import MemoryStore
from lakehouse.store.wrappers import Call, Wrapper

T = TypeVar("T")


def asked(name: str = "d", *objects: str, fingerprint: str = "f") -> Registration:
    return Registration(name, fingerprint, tuple({"key": key} for key in objects), None)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(exclusive=False)


@pytest.fixture
def catalog(store: MemoryStore) -> Catalog:
    return Catalog(store, SystemRuntime())


async def test_racing_registrations_make_one_version_each(store: MemoryStore) -> None:
    catalogs = [Catalog(store.sibling(), SystemRuntime()) for _ in range(8)]
    done = await asyncio.gather(*(one.register(asked("d", f"k{j}")) for j, one in enumerate(catalogs)))
    assert sorted(one.manifest.version for one in done) == list(range(1, 9))
    assert len({one.manifest.dataset_id for one in done}) == 1
    assert [one.existing for one in sorted(done, key=lambda one: one.manifest.version)] == [False] + [
        True
    ] * 7
    assert (await catalogs[0].manifest("d")).version == 8


async def test_another_fingerprint_conflicts(catalog: Catalog) -> None:
    await catalog.register(asked("d", "k"))
    with pytest.raises(Conflict, match="another schema"):
        await catalog.register(asked("d", "k", fingerprint="g"))


async def test_names_that_look_like_paths_stay_apart(catalog: Catalog, store: MemoryStore) -> None:
    for name in ("a", "a/b", "a%2Fb", "b"):
        await catalog.register(asked(name))
    assert [found.name for found in await catalog.list()] == ["a", "a%2Fb", "a/b", "b"]
    with pytest.raises(NotFound):
        await catalog.manifest("a/c")


async def test_a_bare_manifest_becomes_version_1_before_version_2(
    catalog: Catalog, store: MemoryStore
) -> None:
    await store.put(manifest.bare_keys("old")[0], b'{"name":"old","Schema_Fingerprint":"f","objects":null}')
    await catalog.register(asked("old", "k"))
    keys = [info.key for info in await store.list(manifest.versions_prefix("old"))]
    assert keys == [manifest.version_key("old", 1), manifest.version_key("old", 2)]
    first = manifest.parse(await store.get(keys[0]), keys[0])
    assert first.dataset_id == (await catalog.manifest("old")).dataset_id


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"name":7,"schema_fingerprint":"f"}'])
async def test_a_manifest_that_cannot_be_read_is_corrupt(
    catalog: Catalog, store: MemoryStore, data: bytes
) -> None:
    await store.put(manifest.bare_keys("bare")[0], data)
    await store.put(manifest.version_key("versioned", 1), data)
    for name in ("bare", "versioned"):
        with pytest.raises(Corrupt):
            await catalog.manifest(name)


def test_a_manifest_reads_back_as_written() -> None:
    registered = manifest.register(
        None,
        Registration("d", "f", ({"key": "k", "big": 2**80},), 7),
        dataset_id=SystemRuntime().uuid(),
        created_at="2026-01-01T00:00:00+00:00",
    )
    assert manifest.parse(registered.manifest.to_bytes(), "key") == registered.manifest


@pytest.mark.parametrize("name", ["", ".", "..", "x.json", "n" * 201, "é" * 101])
def test_a_name_that_cannot_be_a_key_is_refused(name: str) -> None:
    with pytest.raises(Invalid):
        checked_registration(name, "f", (), None)


async def test_versions_are_read_by_number_and_by_reference(catalog: Catalog) -> None:
    for key in ("a", "b", "c"):
        await catalog.register(asked("d", key))
    assert await catalog.versions("d") == [1, 2, 3]
    assert (await catalog.manifest("d", 2)).objects == ({"key": "b"},)
    for name, version in (("d", 9), ("e", 1), ("e", None)):
        with pytest.raises(NotFound):
            await catalog.manifest(name, version)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("products", ("products", None)),
        ("products@v3", ("products", 3)),
        ("a@v1@v2", ("a@v1", 2)),
        ("a@v0", ("a@v0", None)),
        ("a@v03", ("a@v03", None)),
        ("@v3", ("@v3", None)),
        ("a@3", ("a@3", None)),
        ("a@v" + "9" * 30, ("a@v" + "9" * 30, None)),
    ],
)
def test_a_reference_is_a_name_and_perhaps_a_version(
    reference: str, expected: tuple[str, int | None]
) -> None:
    assert manifest.parse_reference(reference) == expected


@pytest.mark.parametrize(
    ("keep", "pinned", "gone"),
    [
        (2, set(), [1, 2, 3]),
        (1, {2}, [1, 3, 4]),
        (0, set(), [1, 2, 3, 4]),
        (9, set(), []),
        (1, {1, 2, 3, 4, 5}, []),
    ],
)
def test_retiring_keeps_the_newest_and_the_pinned(keep: int, pinned: set[int], gone: list[int]) -> None:
    assert list(manifest.retired([1, 2, 3, 4, 5], keep, pinned)) == gone


async def test_a_dropped_dataset_is_gone_and_a_new_life_begins_above_it(
    catalog: Catalog, store: MemoryStore
) -> None:
    first = (await catalog.register(asked("d", "k"))).manifest
    await store.put("k", b"registered, so not the catalog's to delete")
    await catalog.drop("d")
    assert await catalog.list() == []
    for call in (catalog.manifest("d"), catalog.manifest("d", 1), catalog.versions("d"), catalog.drop("d")):
        with pytest.raises(NotFound):
            await call
    assert await store.get("k")
    again = await catalog.register(asked("d", "k", fingerprint="another"))
    assert (again.existing, again.manifest.version, again.manifest.first_version) == (False, 3, 3)
    assert again.manifest.dataset_id != first.dataset_id
    assert manifest.parse(again.manifest.to_bytes(), "key") == again.manifest


async def test_a_dropped_dataset_of_the_old_system_stays_dropped(
    catalog: Catalog, store: MemoryStore
) -> None:
    await store.put(manifest.bare_keys("old")[0], b'{"name":"old","schema_fingerprint":"f"}')
    await catalog.drop("old")
    with pytest.raises(NotFound):
        await catalog.manifest("old")
    assert await catalog.list() == []


async def test_a_drop_that_was_cut_short_is_finished_by_the_next(store: MemoryStore) -> None:
    class Failing(MemoryStore):
        failing = True

        async def delete(self, key: str) -> None:
            if self.failing:
                raise Unavailable("the store is away")
            await super().delete(key)

    failing = Failing()
    catalog = Catalog(failing, SystemRuntime())
    await catalog.register(asked("d", "k"))
    with pytest.raises(Unavailable):
        await catalog.drop("d")
    with pytest.raises(NotFound):
        await catalog.manifest("d")
    assert (await catalog.chain("d")).left_behind
    failing.failing = False
    await catalog.drop("d")
    assert not (await catalog.chain("d")).left_behind
    assert [info.key for info in await failing.list("")] == [manifest.version_key("d", 2)]


@pytest.mark.parametrize("version", [1, 2])
async def test_a_dataset_whose_manifest_is_damaged_can_be_dropped_and_begun_anew(
    catalog: Catalog, store: MemoryStore, version: int
) -> None:
    old, young = (
        f"{manifest.data_prefix('d')}{manifest.attempt_name(began, 'abcdef01')}/0.parquet"
        for began in (datetime(2020, 1, 1, tzinfo=UTC), datetime.now(UTC))
    )
    for key in (old, young):
        await store.put(key, b"rows")
        await catalog.register(asked("d", key))
    await store.put(manifest.version_key("d", version), b'{"name": "d", "vers')
    await catalog.drop("d")
    with pytest.raises(NotFound):
        await catalog.manifest("d")
    left = [info.key for info in await store.list("")]
    # The other manifest says what is its own; of the one that is damaged only age tells.
    assert left == [*([young] if version == 2 else []), manifest.version_key("d", 3)]
    again = (await catalog.register(asked("d", "k"))).manifest
    assert (again.version, again.first_version) == (4, 4)
    assert list(await catalog.versions("d")) == [4]


async def test_a_damaged_version_is_retired_when_its_time_comes(catalog: Catalog, store: MemoryStore) -> None:
    for number in range(3):
        key = f"{manifest.data_prefix('d')}{number}"
        await store.put(key, b"rows")
        await catalog.register(asked("d", key))
    await store.put(manifest.version_key("d", 1), b"{")
    assert list(await catalog.retire("d", 1)) == [1, 2]
    left = [info.key for info in await store.list("")]
    assert left == [
        f"{manifest.data_prefix('d')}0",
        f"{manifest.data_prefix('d')}2",
        manifest.version_key("d", 3),
    ]
    await store.put(manifest.version_key("d", 3), b"{")
    with pytest.raises(Corrupt):
        await catalog.retire("d", 1)


async def test_a_bare_manifest_that_is_damaged_can_be_dropped(catalog: Catalog, store: MemoryStore) -> None:
    await store.put(manifest.bare_keys("old")[0], b"{")
    with pytest.raises(Corrupt):
        await catalog.manifest("old")
    await catalog.drop("old")
    assert [info.key for info in await store.list("")] == [manifest.version_key("old", 2)]


async def test_no_name_of_a_dataset_leads_to_versions_of_another(
    catalog: Catalog, store: MemoryStore
) -> None:
    await catalog.register(asked("d", "k"))
    await catalog.drop("d")
    left = [info.key for info in await store.list("")]
    assert left == [manifest.version_key("d", 2)]
    other = left[0].removeprefix(manifest.MANIFESTS).removesuffix(manifest.SUFFIX)
    with pytest.raises(NotFound):
        await catalog.drop(other)
    assert [info.key for info in await store.list("")] == left
    await catalog.register(asked(other, "k"))
    assert (await catalog.manifest(other)).version == 1
    assert (await catalog.register(asked("d", "k"))).manifest.version == 3


async def test_a_drop_leaves_what_no_manifest_names(catalog: Catalog, store: MemoryStore) -> None:
    began = manifest.attempt_name(datetime(2020, 1, 1, tzinfo=UTC), "abcdef01")
    uploaded = f"{manifest.data_prefix('d')}{began}/0.parquet"
    await store.put(uploaded, b"rows of an ingest that is still at work")
    await catalog.register(asked("d", "k"))
    await catalog.drop("d")
    assert await store.get(uploaded)


async def test_what_is_published_right_after_a_drop_stays() -> None:
    class Busy(MemoryStore):
        async def create(self, key: str, data: BytesLike) -> None:
            await super().create(key, data)
            if b"dropped_at" in data:
                await Catalog(self, SystemRuntime()).register(asked("d", "new"))

    catalog = Catalog(Busy(), SystemRuntime())
    await catalog.register(asked("d", "k"))
    await catalog.drop("d")
    assert [one["key"] for one in (await catalog.manifest("d")).objects] == ["new"]


@pytest.mark.parametrize("is_written", [True, False])
async def test_a_lost_answer_is_resolved_by_reading(is_written: bool) -> None:
    class Losing(MemoryStore):
        async def create(self, key: str, data: BytesLike) -> None:
            if is_written:
                await super().create(key, data)
            raise Unavailable("the answer was lost", outcome=Outcome.UNKNOWN)

    catalog = Catalog(Losing(), SystemRuntime())
    if is_written:
        assert (await catalog.register(asked("d", "k"))).manifest.version == 1
        return
    with pytest.raises(Unavailable):
        await catalog.register(asked("d", "k"))


def test_a_manifest_with_a_ledger_reads_back_as_written() -> None:
    entry = SourceEntry("file:///a", "e", 3, 2, ("k",), 1, "r", ("id",), {"id": {"min": 1}})
    whole = manifest.Manifest(
        "d",
        SystemRuntime().uuid(),
        7,
        "f",
        ({"key": "k", "size": 1, "etag": "", "rows": 2, "source": "file:///a"},),
        2,
        "2026-01-01T00:00:00+00:00",
        Schema((Field("id", "BIGINT"),)),
        1,
        {"id": {"null_count": 0}},
        (entry,),
        manifest.Rejects(1, "_catalog/rejects/d/x.parquet"),
        "beef",
        "append",
        3,
    )
    assert manifest.parse(whole.to_bytes(), "key") == whole
    assert whole.own_keys == {"_catalog/rejects/d/x.parquet"}


def test_the_age_of_an_attempt_is_in_its_keys() -> None:
    now = datetime(2026, 11, 21, 12, tzinfo=UTC)
    attempt = manifest.attempt_name(now, "0123456789abcdef")
    assert attempt == "20261121T120000-01234567"
    later = now + timedelta(hours=1)
    for key in (manifest.data_key("a/b", attempt, 3), manifest.rejects_key("a/b", attempt)):
        assert manifest.attempt_of(key) == attempt
        assert manifest.attempt_age_s(attempt, later) == 3_600
    assert manifest.attempt_of("_catalog/data/d/foreign") is None
    assert manifest.attempt_age_s("foreign", later) is None


class Reads(Wrapper):
    """Remembers which keys are read."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store, SystemRuntime())
        self.keys: list[str] = []

    async def _around(self, operation: str, key: str, call: Call[T]) -> T:
        if operation == "get":
            self.keys.append(key)
        return await call()


async def test_manifests_are_kept_up_to_their_size_and_the_last_one_always(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(store)
    catalog = Catalog(reads, SystemRuntime())
    for name in ("a", "b"):
        await catalog.register(asked(name, "k"))
    size = max([info.size for info in await store.list(manifest.MANIFESTS)])

    async def read_again() -> list[str]:
        reads.keys = []
        for name in ("a", "b", "b", "a"):
            await catalog.manifest(name)
        return [key.split("/")[-2] for key in reads.keys]

    monkeypatch.setattr("lakehouse.catalog.NEWEST_KEPT_BYTES", 2 * size)
    assert await read_again() == ["a", "b"]
    assert await read_again() == []
    monkeypatch.setattr("lakehouse.catalog.NEWEST_KEPT_BYTES", size - 1)
    await catalog.register(asked("b", "other"))
    assert await read_again() == ["b", "a"]
    assert await read_again() == ["b", "a"]
