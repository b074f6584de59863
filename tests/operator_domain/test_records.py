"""A record is read once, and never taken for another one that came to lie where it lay."""

from typing import TypeVar

from lakehouse import lives
from lakehouse.core.types import IndexParams
from lakehouse.runtime import SystemRuntime
from lakehouse.store.memory import MemoryStore
from lakehouse.store.wrappers import Call, Wrapper
from lakehouse_operator.records import Records

T = TypeVar("T")


class Counted(Wrapper):
    """Counts what is read."""

    reads = 0

    async def _around(self, operation: str, key: str, call: Call[T]) -> T:
        self.reads += operation == "get"
        return await call()


async def test_a_record_is_read_once_while_it_is_the_same() -> None:
    runtime, known = SystemRuntime(), Records()
    store = Counted(MemoryStore(), runtime)
    begun = await lives.begin_empty(store, runtime, IndexParams("products", 3), 1)
    store.reads = 0
    for _ in range(5):
        assert await known.current(store, "products") == begun
    assert store.reads == 1


async def test_a_life_that_began_after_the_store_was_emptied_is_not_taken_for_the_one_before() -> None:
    runtime, known, store = SystemRuntime(), Records(), MemoryStore()
    params = IndexParams("products", 3)
    before = await lives.begin_empty(store, runtime, params, 1)
    assert await known.current(store, "products") == before
    for info in await store.list(""):
        await store.delete(info.key)
    assert await known.current(store, "products") is None
    after = await lives.begin_empty(store, runtime, params, 1)
    assert await known.current(store, "products") == after != before


async def test_a_bucket_of_the_same_name_at_another_address_has_records_of_its_own() -> None:
    runtime, known, here, there = SystemRuntime(), Records(), MemoryStore(), MemoryStore()
    params = IndexParams("products", 3)
    await there.put("another", b"object")
    records = [await lives.begin_empty(store, runtime, params, 1) for store in (here, there)]
    assert here.url == there.url
    assert [await known.current(store, "products") for store in (here, there)] == records
