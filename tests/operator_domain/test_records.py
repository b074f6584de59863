"""A record or a manifest is read once, and never taken for another one that came to lie where it lay."""

from typing import TypeVar

from lakehouse import lives
from lakehouse.catalog import Catalog
from lakehouse.core.manifest import Registration
from lakehouse.core.types import IndexParams
from lakehouse.runtime import SystemRuntime
from lakehouse.store.memory import MemoryStore
from lakehouse.store.wrappers import Call, Wrapper
from lakehouse_operator.records import Records

T = TypeVar("T")


class Counted(Wrapper):
    """Counts what is asked of it."""

    reads = 0
    asked = 0

    async def _around(self, operation: str, key: str, call: Call[T]) -> T:
        self.reads += operation == "get"
        self.asked += 1
        return await call()


async def test_a_record_is_read_once_while_it_is_the_same() -> None:
    runtime = SystemRuntime()
    known = Records(runtime)
    store = Counted(MemoryStore(), runtime)
    begun = await lives.begin_empty(store, runtime, IndexParams("products", 3), 1)
    store.reads = 0
    for _ in range(5):
        assert await known.current(store, "products") == begun
    assert store.reads == 1


async def test_a_life_that_began_after_the_store_was_emptied_is_not_taken_for_the_one_before() -> None:
    runtime, store = SystemRuntime(), MemoryStore()
    known = Records(runtime)
    params = IndexParams("products", 3)
    before = await lives.begin_empty(store, runtime, params, 1)
    assert await known.current(store, "products") == before
    for info in await store.list(""):
        await store.delete(info.key)
    assert await known.current(store, "products") is None
    after = await lives.begin_empty(store, runtime, params, 1)
    assert await known.current(store, "products") == after != before


async def test_a_bucket_of_the_same_name_at_another_address_has_records_of_its_own() -> None:
    runtime, here, there = SystemRuntime(), MemoryStore(), MemoryStore()
    known = Records(runtime)
    params = IndexParams("products", 3)
    await there.put("another", b"object")
    records = [await lives.begin_empty(store, runtime, params, 1) for store in (here, there)]
    assert here.url == there.url
    assert [await known.current(store, "products") for store in (here, there)] == records


def registration(*keys: str) -> Registration:
    return Registration("prices", "f", tuple({"key": key} for key in keys), None)


async def test_a_dataset_that_is_as_it_was_is_one_request() -> None:
    runtime = SystemRuntime()
    known, store = Records(runtime), Counted(MemoryStore(), runtime)
    for number in range(3):
        made = await Catalog(store, runtime).register(registration(f"k{number}"))
    assert (await known.chain(store, "prices")).newest == made.manifest
    store.asked = store.reads = 0
    for _ in range(5):
        chain = await known.chain(store, "prices")
        assert (chain.newest, chain.last, chain.versions) == (made.manifest, 3, (1, 2, 3))
    assert (store.asked, store.reads) == (5, 0)
    newer = await Catalog(store, runtime).register(registration("k3"))
    assert (await known.chain(store, "prices")).newest == newer.manifest


async def test_a_manifest_that_came_after_the_store_was_emptied_is_not_taken_for_the_one_before() -> None:
    runtime, store = SystemRuntime(), MemoryStore()
    known = Records(runtime)
    before = await Catalog(store, runtime).register(registration("k"))
    assert (await known.chain(store, "prices")).newest == before.manifest
    for info in await store.list(""):
        await store.delete(info.key)
    assert (await known.chain(store, "prices")).newest is None
    after = await Catalog(store, runtime).register(registration("k"))
    assert (await known.chain(store, "prices")).newest == after.manifest != before.manifest
