"""The catalog: create-only versions, races settled by the store, the old system's manifests adopted."""

import asyncio

import pytest

from lakehouse.catalog import Catalog
from lakehouse.core import manifest
from lakehouse.core.errors import Conflict, Corrupt, Invalid, NotFound
from lakehouse.core.manifest import Registration, checked_registration
from lakehouse.runtime import SystemRuntime
from lakehouse.store.memory import MemoryStore


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
