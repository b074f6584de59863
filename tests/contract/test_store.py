"""Every store keeps the same promises: memory, a local directory, and S3 on a real MinIO."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from lakehouse.core.errors import Conflict, Invalid, LakehouseError, NotFound, Outcome, Unavailable
from lakehouse.runtime import SystemRuntime
from lakehouse.store.base import BytesLike, ObjectStore
from lakehouse.store.local import LocalStore
from lakehouse.store.memory import MemoryStore
from lakehouse.store.probe import probe
from lakehouse.store.s3 import S3Store
from lakehouse.store.wrappers import FaultyStore, LatencyStore, MeteredStore, ScriptedFaults

PREFIXES = itertools.count()
STORES = ["memory", "local", pytest.param("s3", marks=pytest.mark.minio), "wrapped"]
ODD_KEYS = [
    "plain",
    "with space",
    "plus+plus",
    "per%cent",
    "escaped%2Fslash",
    "question?mark&amp;#hash",
    "quote'\"s",
    "a\\b",
    "tab\tand\x7f",
    "ünïcödé/ключ/鍵/🔑",
    "e\u0301 is not é",
    "deep/" + "x/" * 20 + "end",
    "...dots",
    "-dash",
    "x" * 255,
    "/".join(["y" * 200] * 5),
]


@pytest.fixture(params=STORES)
async def store(
    request: pytest.FixtureRequest, runtime: SystemRuntime, tmp_path: Path
) -> AsyncIterator[ObjectStore]:
    store = _opened(request, runtime, tmp_path / "store")
    yield store
    await store.close()


def _opened(request: pytest.FixtureRequest, runtime: SystemRuntime, path: Path) -> ObjectStore:
    match request.param:
        case "memory":
            return MemoryStore()
        case "local":
            return LocalStore(path, runtime, ["vectors"])
        case "wrapped":
            faultless = FaultyStore(MemoryStore(), runtime, ScriptedFaults([]))
            return MeteredStore(LatencyStore(faultless, runtime, lambda: 0.0), runtime, _Ignored())
        case _:
            minio = request.getfixturevalue("minio")
            return S3Store(minio.bucket, f"tests/{next(PREFIXES)}", runtime, minio.settings())


class _Ignored:
    def observe(self, operation: str, outcome: str, seconds: float) -> None:
        assert operation
        assert outcome
        assert seconds >= 0


async def keys(store: ObjectStore, prefix: str = "", **how: object) -> list[str]:
    return [found.key for found in await store.list(prefix, **how)]  # type: ignore[arg-type]


async def race(
    write: Callable[[str, BytesLike], Awaitable[None]], key: str, bodies: list[bytes]
) -> list[bool]:
    """Which of the racers believe that they wrote."""

    async def attempt(body: bytes) -> bool:
        while True:
            try:
                await write(key, body)
            except Conflict:
                return False
            except Unavailable as error:  # S3 may answer 409 while another write is under way: the same again
                if error.outcome is not Outcome.NOT_COMMITTED:
                    raise
                continue
            return True

    return await asyncio.gather(*(attempt(body) for body in bodies))


async def test_a_created_object_reads_back(store: ObjectStore) -> None:
    await store.create("a/b", b"hello")
    assert await store.get("a/b") == b"hello"
    found = await store.head("a/b")
    assert (found.key, found.size) == ("a/b", 5)


async def test_second_create_conflicts_and_changes_nothing(store: ObjectStore) -> None:
    await store.create("k", b"first")
    before = await store.head("k")
    with pytest.raises(Conflict, match="`k"):
        await store.create("k", b"second, longer")
    assert await store.get("k") == b"first"
    assert await store.head("k") == before
    assert await keys(store) == ["k"]


async def test_create_after_delete_succeeds(store: ObjectStore) -> None:
    await store.create("a/k", b"first")
    await store.delete("a/k")
    await store.create("a/k", b"second")
    assert await store.get("a/k") == b"second"


@pytest.mark.parametrize("racers", [8, 24])
async def test_of_many_racers_exactly_one_wins(store: ObjectStore, racers: int) -> None:
    for round_ in range(5):
        key = f"race/{round_}"
        bodies = [b"%d" % j * 1000 for j in range(racers)]
        won = await race(store.create, key, bodies)
        assert sum(won) == 1
        assert await store.get(key) == bodies[won.index(True)]


async def test_racers_making_and_emptying_directories_lose_nothing(store: ObjectStore) -> None:
    async def work(j: int) -> None:
        for turn in range(15):
            key = f"shared/folder/deep/{j}-{turn}"
            await store.create(key, key.encode())
            assert await store.get(key) == key.encode()
            await store.delete(key)

    await store.put("shared/kept", b"")
    await asyncio.gather(*(work(j) for j in range(8)))
    assert await keys(store) == ["shared/kept"]


async def test_put_overwrites(store: ObjectStore) -> None:
    await store.put("a/k", b"first")
    await store.put("a/k", b"second, longer")
    await store.put("a/k", b"third")
    assert await store.get("a/k") == b"third"
    assert (await store.head("a/k")).size == 5


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_any_bytes_like_body_is_taken(store: ObjectStore, kind: Callable[[bytes], BytesLike]) -> None:
    await store.create("created", kind(b"\x00\xff body"))
    await store.put("put", kind(b"\x00\xff body"))
    assert await store.get("created") == await store.get("put") == b"\x00\xff body"


async def test_get_takes_ranges_and_cuts_them_at_the_end(store: ObjectStore) -> None:
    body = bytes(range(256)) * 4
    await store.put("k", body)
    for start, end in [
        (0, 10),
        (10, 20),
        (1000, None),
        (1020, 4000),
        (5, 5),
        (0, None),
        (1024, None),
        (3000, 3001),
    ]:
        assert await store.get("k", start, end) == body[start:end], (start, end)


@pytest.mark.parametrize(("start", "end"), [(-1, None), (5, 4)])
async def test_a_senseless_range_is_invalid(store: ObjectStore, start: int, end: int | None) -> None:
    await store.put("k", b"0123456789")
    with pytest.raises(Invalid, match="range"):
        await store.get("k", start, end)


async def test_what_is_missing_is_not_found(store: ObjectStore, tmp_path: Path) -> None:
    await store.put("there/below", b"x")
    for missing in ["k", "there", "there/bel", "there/below/deeper", "no/such/folder"]:
        for call in [
            store.get(missing),
            store.get(missing, 2, 4),
            store.get(missing, 2, 2),
            store.head(missing),
            store.download(missing, tmp_path / "target"),
            anext(aiter(store.stream(missing))),
        ]:
            with pytest.raises(NotFound, match=missing):
                await call
    assert not (tmp_path / "target").exists()


async def test_delete_is_idempotent_and_takes_only_its_key(store: ObjectStore) -> None:
    for key in ["a/k", "a/k2", "b"]:
        await store.put(key, b"x")
    for missing in ["a/k", "a/k", "a", "never/was", "b/below"]:
        await store.delete(missing)
    assert await keys(store) == ["a/k2", "b"]


async def test_lists_are_in_order_of_the_keys_bytes(store: ObjectStore) -> None:
    mixed = [
        "a",
        "a-b",
        "a.b/x",
        "a0",
        "b/a",
        "b/a/x",
        "b-",
        "B",
        "é",
        "z",
        "\U0001f511",
        "\uff5e",
        "a b",
        "b0/1",
    ]
    wanted = [
        key for key in mixed if key not in ("a", "b/a")
    ]  # `b/a/x` and `b/a` do not go together everywhere
    for key in wanted:
        await store.put(key, key.encode())
    found = await store.list("")
    assert [each.key for each in found] == sorted(wanted, key=str.encode)
    assert [each.size for each in found] == [len(each.key.encode()) for each in found]


async def test_lists_heed_prefix_start_after_and_limit(store: ObjectStore) -> None:
    every = [f"log/{j:03}" for j in range(30)] + ["lo", "log-", "log0", "logs/1", "other/deep/er", "other/z"]
    for key in every:
        await store.put(key, b"x")
    every.sort()
    prefixes = ["", "l", "log", "log/", "log/01", "log/010", "log/010x", "other/deep", "no", "other/deep/"]
    afters = [
        "",
        "a",
        "log",
        "log/",
        "log/005",
        "log/0055",
        "log/029",
        "log/~",
        "other/deep",
        "other/deep/er",
        "z",
    ]
    for prefix, after, limit in itertools.product(prefixes, afters, [None, 0, 1, 7]):
        wanted = [key for key in every if key.startswith(prefix) and key > after][:limit]
        assert await keys(store, prefix, start_after=after, limit=limit) == wanted, (prefix, after, limit)


async def test_a_list_is_not_cut_at_a_thousand(store: ObjectStore) -> None:
    every = [f"many/{j:05}" for j in range(2_050)]
    for some in _batched(every, 64):
        await asyncio.gather(*(store.create(key, b"") for key in some))
    assert await keys(store, "many/") == every
    assert await keys(store, "many/", limit=1_001) == every[:1_001]
    assert await keys(store, "many/", start_after=every[1_499], limit=501) == every[1_500:2_001]


def _batched(items: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


@pytest.mark.parametrize("prefix", ["/", "../", "a//", "./", "a/../", "/etc/", "nul\x00/"])
async def test_a_prefix_that_no_key_has_lists_nothing(store: ObjectStore, prefix: str) -> None:
    await store.put("a/b", b"x")
    assert await keys(store, prefix) == []
    assert await store.children(prefix) == await store.children("none/")


async def test_children_are_one_level(store: ObjectStore) -> None:
    for key in ["top", "a/1", "a/2", "a/b/3", "a/c/4", "a/c/5", "a-", "a0/1", "ab/c/d/e"]:
        await store.put(key, b"x")
    top = await store.children("")
    assert top.prefixes == ("a/", "a0/", "ab/")
    assert [found.key for found in top.objects] == ["a-", "top"]
    below = await store.children("a/")
    assert below.prefixes == ("a/b/", "a/c/")
    assert [found.key for found in below.objects] == ["a/1", "a/2"]
    assert await store.children("none/") == await store.children("top/")
    with pytest.raises(Invalid):
        await store.children("a")


async def test_children_forget_what_was_deleted(store: ObjectStore) -> None:
    await store.put("a/b/c", b"x")
    await store.delete("a/b/c")
    assert (await store.children("")).prefixes == ()


@pytest.mark.parametrize("key", ODD_KEYS)
async def test_odd_keys_work(store: ObjectStore, key: str) -> None:
    await store.create(key, b"odd")
    assert await store.get(key) == b"odd"
    assert await keys(store) == [key]
    assert await keys(store, key) == [key]
    with pytest.raises(Conflict):
        await store.create(key, b"again")
    await store.delete(key)
    assert await keys(store) == []


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", ".", "..", "a/../b", "a/./b", "x" * 1025, "\ud800", "nul\0"]
)
async def test_bad_keys_are_invalid_everywhere(store: ObjectStore, key: str, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x")
    for call in [
        store.create(key, b""),
        store.put(key, b""),
        store.get(key),
        store.head(key),
        store.delete(key),
        store.download(key, tmp_path / "target"),
        store.upload(key, tmp_path / "source"),
    ]:
        with pytest.raises(Invalid):
            await call
    assert await keys(store) == []


async def test_an_empty_object_is_an_object(store: ObjectStore, tmp_path: Path) -> None:
    await store.create("empty", b"")
    with pytest.raises(Conflict):
        await store.create("empty", b"x")
    assert await store.get("empty") == b""
    assert await store.get("empty", 0, 10) == b""
    assert (await store.head("empty")).size == 0
    assert [chunk async for chunk in store.stream("empty")] == []
    await store.download("empty", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b""


async def test_twenty_mebibytes_go_every_way(store: ObjectStore, tmp_path: Path) -> None:
    body = bytes(itertools.islice(itertools.cycle(range(251)), 1 << 20)) * 20
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(body)
    await store.create("created", body)
    await store.upload("uploaded", source)
    assert await store.get("created") == body
    assert await store.get("uploaded", 1 << 20, 3 << 20) == body[1 << 20 : 3 << 20]
    found = await store.download("created", target)
    assert (found.key, found.size) == ("created", len(body))
    assert target.read_bytes() == body
    chunks = [chunk async for chunk in store.stream("uploaded", 3 << 20)]
    assert b"".join(chunks) == body
    assert max(map(len, chunks)) <= 3 << 20


async def test_upload_overwrites_and_leaves_the_file(store: ObjectStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"new")
    await store.put("k", b"old, longer")
    await store.upload("k", source)
    assert await store.get("k") == b"new"
    source.write_bytes(b"changed later")
    assert await store.get("k") == b"new"


async def test_upload_of_no_file_is_invalid(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="none-here"):
        await store.upload("k", tmp_path / "none-here")
    assert await keys(store) == []


async def test_download_replaces_no_file(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    await store.put("k", b"object")
    with pytest.raises(Invalid, match="mine"):
        await store.download("k", tmp_path / "mine")
    assert (tmp_path / "mine").read_bytes() == b"mine"


async def test_a_downloaded_file_outlives_its_object(store: ObjectStore, tmp_path: Path) -> None:
    await store.put("k", b"before")
    await store.download("k", tmp_path / "target")
    await store.put("k", b"after")
    await store.delete("k")
    assert (tmp_path / "target").read_bytes() == b"before"


async def test_concurrent_puts_and_gets_are_never_torn(store: ObjectStore, tmp_path: Path) -> None:
    bodies = {bytes([j]) * 200_000 for j in range(8)}
    await store.put("k", bytes(200_000))

    async def write(body: bytes) -> None:
        for _ in range(4):
            await store.put("k", body)

    async def read(j: int) -> None:
        for turn in range(6):
            assert await store.get("k") in bodies
            target = tmp_path / f"{j}-{turn}"
            try:
                found = await store.download("k", target)
            except Unavailable:  # S3: replaced between its size and its bytes
                continue
            assert found.size == 200_000
            assert target.read_bytes() in bodies

    await asyncio.gather(*(write(body) for body in sorted(bodies)), *(read(j) for j in range(4)))


async def test_after_close_nothing_is_answered(store: ObjectStore, tmp_path: Path) -> None:
    await store.put("k", b"x")
    (tmp_path / "source").write_bytes(b"x")
    await store.close()
    await store.close()
    assert not store.exclusive
    for call in [
        store.create("new", b""),
        store.put("k", b""),
        store.get("k"),
        store.head("k"),
        store.list(""),
        store.children(""),
        store.delete("k"),
        store.download("k", tmp_path / "target"),
        store.upload("k", tmp_path / "source"),
        anext(aiter(store.stream("k"))),
    ]:
        with pytest.raises(Unavailable, match="closed") as caught:
            await call
        assert caught.value.outcome is Outcome.NOT_COMMITTED


async def test_the_probe_accepts_and_leaves_nothing(store: ObjectStore, runtime: SystemRuntime) -> None:
    await probe(store, runtime)
    assert await keys(store) == []


async def test_the_url_names_the_store_without_secrets(store: ObjectStore) -> None:
    assert store.url.startswith(("memory:", "file:///", "s3://lakehouse/tests/"))


async def test_errors_are_ours(store: ObjectStore) -> None:
    for call in [store.get("missing"), store.get("../bad"), store.children("no-slash")]:
        with pytest.raises(LakehouseError):
            await call
