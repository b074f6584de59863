"""Where other processes are, whom all prefer, and what is said to them: without a process."""

import asyncio
from collections import Counter

import numpy as np
import pytest

from lakehouse.core import entry, errors
from lakehouse.core.entry import Operation, Request
from lakehouse.core.errors import Invalid, LakehouseError, Outcome
from lakehouse.core.types import Hit, SearchPlan, SearchResult
from lakehouse.index import predicate
from lakehouse.placed_shard import Found
from lakehouse.remote import addresses, wire
from lakehouse.remote.addresses import Addresses
from lakehouse.remote.predicates import Predicates, WirePredicate, to_wire
from lakehouse.runtime import SystemRuntime

NAMES = [f"http://10.0.0.{n}:3110" for n in range(5)]


@pytest.mark.parametrize(
    ("url", "places"),
    [
        ("http://products-shard-0:3110", (("products-shard-0", 3110),)),
        ("http://127.0.0.1:1,127.0.0.2:2/", (("127.0.0.1", 1), ("127.0.0.2", 2))),
        ("http://[::1]:3110", (("::1", 3110),)),
        ("http://pool.shop.svc", (("pool.shop.svc", 80),)),
    ],
)
def test_urls_name_places(url: str, places: tuple[tuple[str, int], ...]) -> None:
    assert addresses.parse(url) == places


@pytest.mark.parametrize(
    "url", ["https://a:1", "a:1", "http://", "http://a:1,", "http://a:99999", "http://a/b"]
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(Invalid, match="url="):
        addresses.parse(url)


def test_all_prefer_the_same_address_and_a_death_moves_only_what_was_its_own() -> None:
    keys = [f"index/{n}" for n in range(2_000)]
    first = {key: addresses.ranked(NAMES, key)[0] for key in keys}
    assert first == {key: addresses.ranked(reversed(NAMES), key)[0] for key in keys}
    shares = Counter(first.values())
    assert all(300 < shares[name] < 500 for name in NAMES), shares
    left = NAMES[1:]
    moved = {key for key in keys if addresses.ranked(left, key)[0] != first[key]}
    assert moved == {key for key in keys if first[key] == NAMES[0]}


async def test_who_does_not_answer_is_asked_last_and_is_not_preferred() -> None:
    runtime = SystemRuntime(1)
    known = Addresses("http://127.0.0.1:1,127.0.0.1:2,127.0.0.1:3", runtime)
    ranked = await known.by_preference("key")
    assert sorted(ranked) == [f"http://127.0.0.1:{n}" for n in (1, 2, 3)]
    assert await known.preferred("key") == ranked[0]
    known.suspect(ranked[0])
    assert await known.by_preference("key") == [ranked[1], ranked[2], ranked[0]]
    assert await known.preferred("key") == ranked[1]
    known.trust(ranked[0])
    assert await known.preferred("key") == ranked[0]
    for address in ranked:
        known.suspect(address)
    assert await known.preferred("key") is None
    assert len(await known.by_turn()) == 3
    await known.close()
    runtime.close()


async def test_a_name_is_resolved_to_all_its_addresses_and_an_unknown_one_to_none() -> None:
    runtime = SystemRuntime(1)
    near, nowhere = Addresses("http://localhost:7", runtime), Addresses("http://nowhere.invalid:7", runtime)
    assert "http://127.0.0.1:7" in await near.all()
    assert await nowhere.all() == ()
    assert await nowhere.preferred("key") is None
    await asyncio.gather(near.close(), nowhere.close())
    runtime.close()


FILTERS = [
    "price < 50 AND country IN ('SE', 'DK') AND NOT discontinued",
    "maker.name ILIKE 'acme%' OR a BETWEEN 1 AND 2.5 OR b IS NOT NULL",
    "n = 9007199254740993 AND n <> -9223372036854775808",
    "n < 99999999999999999999999999",
    "TRUE",
]


@pytest.mark.parametrize("text", FILTERS)
def test_a_filter_arrives_as_it_was_sent(text: str) -> None:
    sent = predicate.parse(text)
    travelled = wire.decode(wire.encode(to_wire(sent)), type=WirePredicate)
    read = Predicates().read(travelled)
    assert read is not None
    assert (read, read.root, read.paths, read.by_id) == (sent, sent.root, sent.paths, sent.by_id)


def test_a_set_of_ids_arrives_and_is_kept() -> None:
    sent = predicate.all_of(predicate.members([f"i{n}" for n in range(50)]), predicate.parse("a = 1"))
    reader = Predicates()
    travelled = wire.decode(wire.encode(to_wire(sent)), type=WirePredicate)
    read = reader.read(travelled)
    assert read is not None
    assert read == sent
    assert read.by_id
    assert isinstance(read.root, predicate.And)
    assert isinstance(read.root.nodes[0], predicate.Members)
    assert read.root.nodes[0].digest in sent.text
    assert reader.read(travelled) is read
    assert Predicates().read(None) is None
    with pytest.raises(Invalid, match="another release"):
        Predicates().read(WirePredicate("?", ["xor", []], []))


ERRORS: list[LakehouseError] = [
    errors.Invalid("wrong"),
    errors.NotFound("nothing"),
    errors.Dropped("gone"),
    errors.Conflict("taken"),
    errors.TooLarge("big"),
    errors.Busy("later", retry_after_s=7.0),
    errors.Unavailable("away", outcome=Outcome.UNKNOWN, retry_after_s=3.0),
    errors.Unavailable("away", outcome=Outcome.NOT_COMMITTED),
    errors.StorageFull("full", outcome=Outcome.NOT_COMMITTED),
    errors.Fenced("fenced"),
    errors.OtherLife("other", outcome=Outcome.NOT_COMMITTED),
    errors.Corrupt("damaged"),
    wire.Behind("behind", outcome=Outcome.NOT_COMMITTED),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_arrives_as_the_same_error(error: LakehouseError) -> None:
    read = wire.error_of(wire.decode(wire.encode(wire.failure_of(error)), type=wire.Failure))
    assert type(read) is type(error)
    assert vars(read) == vars(error)


def test_an_error_without_a_kind_is_its_ancestors() -> None:
    class Special(errors.Conflict):
        pass

    assert type(wire.error_of(wire.failure_of(Special("x")))) is errors.Conflict
    assert type(wire.error_of(wire.Failure("FromTheFuture", "x"))) is errors.Unavailable
    denied = wire.error_of(wire.failure_of(errors.Denied("no", authenticated=True)))
    assert isinstance(denied, errors.Unavailable)


def test_an_answer_arrives_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3, 7)).astype(np.float32)
    hits = (
        (Hit("å", 0.1, b'{"n":1}', rows[0]), Hit("b", 0.30000000000000004, b"", rows[1])),
        (),
        (Hit("c", 2.0, b"null", rows[2]),),
    )
    found = Found(SearchResult(hits, SearchPlan("graph+exact", 12, 64, 99)), 42, 0.0)
    sent = wire.encode(wire.searched(found, wire.Seen(42, 100, stale_s=1.5)))
    read = wire.found_in(wire.decode(sent, type=wire.Searched), 7)
    assert (read.position, read.stale_s, read.result.plan) == (42, 1.5, found.result.plan)
    for mine, theirs in zip(read.result.hits, hits, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert (one.id, one.distance, one.metadata) == (other.id, other.distance, other.metadata)
            np.testing.assert_array_equal(one.vector, other.vector)


def test_a_request_is_read_as_the_log_has_it() -> None:
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    request = Request(b"key", Operation.UPSERT, ("a", "b"), vectors, (b"{}", None))
    encoded = entry.encode_request(request, b"d" * 16)
    read = entry.decode_request(encoded.data)
    assert (read.digest, read.data) == (encoded.digest, encoded.data)
    assert (read.request.key, read.request.ids, read.request.metadata) == (b"key", ("a", "b"), (b"{}", None))
    for damaged in (encoded.data[:-1], encoded.data + b"x", b""):
        with pytest.raises(errors.Corrupt):
            entry.decode_request(damaged)
