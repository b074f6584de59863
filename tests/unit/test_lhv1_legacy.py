"""Versions 1 and 2: read whole or refused, and written so that they are read."""

import io
import json
import struct
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from format.samples import GOLDEN, OLD
from lakehouse.core import legacy, lhv1
from lakehouse.core.errors import Corrupt, Invalid
from lakehouse.core.legacy import Graph, Layer, graph_of_links, varint
from lakehouse.core.types import Distance, IndexParams

FILES = {name: (GOLDEN / f"{name}.lhv1").read_bytes() for name in OLD}
SMALL = FILES["v2-cosine-50x8"]


def framed(envelope: object, graph: bytes) -> bytes:
    text = envelope if isinstance(envelope, bytes) else json.dumps(envelope).encode()
    return b"LHV1" + struct.pack(">I", len(text)) + text + graph


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return varint(len(raw)) + raw


def node(key: str | bytes, vector: list[float], neighbours: tuple[str, ...] = ()) -> bytes:
    packed = varint(len(vector)) + struct.pack(f"<{len(vector)}f", *vector)
    return string(key) + packed + varint(len(neighbours)) + b"".join(map(string, neighbours))


def graph(*layers: list[bytes], distance: str = "cosine", version: int = 1, m: int = 16) -> bytes:
    head = varint(version) + varint(m) + struct.pack("<d", 0.25) + varint(20) + string(distance)
    return head + varint(len(layers)) + b"".join(varint(len(layer)) + b"".join(layer) for layer in layers)


PARAMS = {"name": "x", "dimension": 2, "m": 16, "ef_search": 20, "distance": "cosine"}
PAIR = graph([node("a", [1, 2], ("b",)), node("b", [3, 4], ("a",))], [node("b", [3, 4])])


def test_golden_files_of_the_old_system_are_read_bit_for_bit() -> None:
    for name, data in FILES.items():
        old = lhv1.read_legacy(data)
        vectors = np.fromfile(GOLDEN / f"{name}.lhv1.f32", "<f4").reshape(-1, old.params.dimension)
        assert old.ids == tuple(f"w-{j:05d}" for j in range(len(vectors)))
        assert old.vectors.tobytes() == vectors.tobytes()
        for j, value in enumerate(old.metadata):
            assert value == (b"" if j % 3 == 0 else f'{{"row":{j},"label":"α/{j % 7}"}}'.encode())
        assert (old.params.m, old.params.ef_search) == (16, 20)
        assert f"v{old.version}-{old.params.distance}" in name.replace("single", "cosine")


@pytest.mark.parametrize("name", OLD)
def test_every_truncation_is_refused(name: str) -> None:
    data = FILES[name]
    for length in range(0, len(data), max(1, len(data) // 3_000)):
        with pytest.raises((Corrupt, Invalid)):
            lhv1.read_legacy(data[:length])
    with pytest.raises(Corrupt, match="after the end"):
        lhv1.read_legacy(data + b"\0")


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(OLD),
    st.lists(
        st.tuples(st.integers(0, 1 << 20), st.integers(0, 9), st.binary(max_size=9)), min_size=1, max_size=4
    ),
)
def test_a_damaged_file_is_refused_or_read_whole_never_anything_else(
    name: str, changes: list[tuple[int, int, bytes]]
) -> None:
    data = bytearray(FILES[name])
    for place, removed, inserted in changes:
        at = place % len(data)
        data[at : at + removed] = inserted
    try:
        old = lhv1.read_legacy(data)
    except (Corrupt, Invalid):
        pass
    else:
        assert old.vectors.shape == (len(old.ids), old.params.dimension)
        assert len(old.metadata) == len(old.ids) == len(set(old.ids))
    if data[:4] == b"LHV1":
        assert lhv1.inspect(data)["checksums"] != "ok"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(envelope: bytes, payload: bytes) -> None:
    with pytest.raises((Corrupt, Invalid)):
        lhv1.read_legacy(framed(envelope, payload))
    with pytest.raises((Corrupt, Invalid)):
        lhv1.read_legacy(framed({"version": 2, "params": PARAMS}, payload))


HUGE = varint((1 << 63) - 1)
HEAD = graph()[:-1]


@pytest.mark.parametrize(
    "payload",
    [
        HEAD + HUGE,
        HEAD + varint(1) + HUGE,
        HEAD + varint(1) + varint(1) + HUGE,
        HEAD + varint(1) + varint(1) + string("a") + HUGE,
        HEAD + varint(1) + varint(1) + string("a") + varint(2) + bytes(8) + HUGE,
        HEAD + varint(1) + varint(1) + string("a") + varint(2) + bytes(8) + varint(1) + HUGE,
        HEAD + varint(60) + varint(-1) + bytes(100),
        HEAD + varint(64) + bytes(64),
        HEAD + b"\xff" * 20,
        HEAD + b"\xff" * 9 + b"\x7f",
    ],
)
@pytest.mark.parametrize("dimension", [0, 2, 65_535])
def test_a_length_that_the_file_cannot_hold_allocates_nothing(payload: bytes, dimension: int) -> None:
    data = framed({"version": 2, "params": PARAMS | {"dimension": dimension}, "ids": ["a"]}, payload)
    tracemalloc.start()
    try:
        with pytest.raises(Corrupt):
            lhv1.read_legacy(data)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_keys_match_without_regard_to_case_and_the_last_one_counts() -> None:
    text = (
        b'{"VERSION":1,"Version":2,"PaRaMs":{"NAME":"y","Dimension":2,"M":8,"EF_Search":9,"DISTANCE":"cosine"},'
        b'"other":[1,{}],"METADATA":{"a":{"A": 1.0},"a":{"A":  1e999}},"iDs":["b","a"]}'
    )
    old = lhv1.read_legacy(framed(text, PAIR))
    assert old.ids == ("b", "a")
    assert old.metadata == (b"", b'{"A":  1e999}')
    assert old.params == IndexParams("y", 2, m=8, ef_search=9)
    assert old.vectors.tolist() == [[3, 4], [1, 2]]


def test_version_1_takes_its_items_from_the_graph_even_without_metadata() -> None:
    old = lhv1.read_legacy(framed({"version": 1, "params": PARAMS, "metadata": {"gone": 1}}, PAIR))
    assert old.ids == ("a", "b")
    assert old.metadata == (b"", b"")


def test_version_2_holds_the_items_its_ids_name() -> None:
    old = lhv1.read_legacy(framed({"version": 2, "params": PARAMS, "ids": ["b"]}, PAIR))
    assert (old.ids, old.graph_sizes) == (("b",), (2, 1))
    with pytest.raises(Corrupt, match="names an item that the graph lacks"):
        lhv1.read_legacy(framed({"version": 2, "params": PARAMS, "ids": ["b", "c"]}, PAIR))
    with pytest.raises(Corrupt, match="one id twice"):
        lhv1.read_legacy(framed({"version": 2, "params": PARAMS, "ids": ["b", "b"]}, PAIR))


def test_an_empty_index_has_no_layers() -> None:
    variants: list[dict[str, object]] = [{"ids": []}, {"ids": None}, {}]
    for ids in variants:
        envelope = {"version": 2, "params": PARAMS, "metadata": None} | ids
        for payload in (graph(), graph([])):
            old = lhv1.read_legacy(framed(envelope, payload))
            assert (old.ids, old.vectors.shape) == ((), (0, 2))


def test_null_and_empty_metadata_mean_none_and_the_rest_is_kept_as_written() -> None:
    text = b'{"version":1,"params":%s,"metadata":{"a":null,"b":{}}}' % json.dumps(PARAMS).encode()
    assert lhv1.read_legacy(framed(text, PAIR)).metadata == (b"", b"")
    value = '{"n": 12345678901234567890123456789, "t": "\\u00e9\\ud83d", "x": [1.50, -0]}'
    text = b'{"version":1,"params":%s,"metadata":{"a":%s}}' % (json.dumps(PARAMS).encode(), value.encode())
    assert lhv1.read_legacy(framed(text, PAIR)).metadata == (value.encode(), b"")


def test_parameters_the_old_file_leaves_out_get_the_old_defaults() -> None:
    old = lhv1.read_legacy(framed({"version": 1}, PAIR))
    assert old.params == IndexParams("", 2, m=16, ef_search=20, distance=Distance.COSINE)
    tuned = PARAMS | {"m": 1, "ef_search": 1 << 40}
    old = lhv1.read_legacy(framed({"version": 1, "params": tuned}, PAIR))
    assert (old.params.m, old.params.ef_search) == (2, 10_000)


def test_metadata_nested_deeper_than_the_limit_is_refused() -> None:
    def holding(depth: int) -> bytes:
        value = b"[" * depth + b"]" * depth
        return framed(b'{"version":1,"metadata":{"a":%s}}' % value, PAIR)

    assert lhv1.read_legacy(holding(lhv1.JSON_DEPTH_MAX)).metadata[0].count(b"[") == lhv1.JSON_DEPTH_MAX
    wide = b"[" + b"[]," * 1_000 + b'"[[[["]'
    assert lhv1.read_legacy(framed(b'{"version":1,"metadata":{"a":%s}}' % wide, PAIR)).metadata[0] == wide
    for depth in (lhv1.JSON_DEPTH_MAX + 1, 100_000):
        with pytest.raises(Corrupt):
            lhv1.read_legacy(holding(depth))


@pytest.mark.parametrize(
    "envelope",
    [
        b"",
        b"null",
        b"[]",
        b'{"version":2',
        b'{"version":2}x',
        b'{"version":2,}',
        b"{version:2}",
        b'{"version":"2"}',
        b'{"version":2.0}',
        b'{"version":true}',
        b'{"version":-1}',
        b'{"params":{}}',
        b'{"version":2,"params":[]}',
        b'{"version":2,"params":{"dimension":"2"}}',
        b'{"version":2,"params":{"dimension":-2}}',
        b'{"version":2,"params":{"dimension":3}}',
        b'{"version":2,"params":{"m":-1}}',
        b'{"version":2,"params":{"m":1.5}}',
        b'{"version":2,"params":{"distance":"euclidean"}}',
        b'{"version":2,"params":{"distance":7}}',
        b'{"version":2,"metadata":[]}',
        b'{"version":2,"metadata":{"a":NaN}}',
        b'{"version":2,"metadata":{"a":01}}',
        b'{"version":2,"metadata":{"a":"\x01"}}',
        b'{"version":2,"metadata":{"a":"\xff"}}',
        b'{"version":2,"ids":{}}',
        b'{"version":2,"ids":[1]}',
        b'{"version":2,"sections":[]}',
        b'{"version":2,"params":{"m":' + b"9" * 5000 + b"}}",
    ],
)
def test_an_envelope_that_is_not_one_is_corrupt(envelope: bytes) -> None:
    with pytest.raises(Corrupt):
        lhv1.read_legacy(framed(envelope, PAIR))


def test_other_versions_are_not_legacy() -> None:
    with pytest.raises((Corrupt, Invalid)):
        lhv1.read_legacy(framed({"version": 3}, PAIR))
    with pytest.raises(Invalid, match="known are 1, 2, 3"):
        lhv1.version_of(framed({"version": 9}, PAIR))


@pytest.mark.parametrize(
    "payload",
    [
        graph([node("a", [1, 2])], version=2),
        graph([node("a", [1, 2]), node("a", [1, 2])]),
        graph([node("a", [1, 2])], [node("b", [1, 2])]),
        graph([node("a", [1, 2])], [node("a", [1, 3])]),
        graph([node("a", [1, 2])], [node("a", [1, 2]), node("a", [1, 2])]),
        graph([node("a", [1, 2, 3])]),
        graph([node("a", [])]),
        graph([node(b"\xff", [1, 2])]),
        graph([node("a", [1, 2])]) + b"\0",
        PAIR.replace(struct.pack("<d", 0.25), struct.pack("<d", float("nan"))),
    ],
)
def test_a_graph_the_old_library_would_not_write_is_corrupt(payload: bytes) -> None:
    with pytest.raises(Corrupt, match="offset=`"):
        lhv1.read_legacy(framed({"version": 1, "params": PARAMS}, payload))


def test_a_distance_the_old_library_lacks_is_invalid() -> None:
    with pytest.raises(Invalid, match="manhattan"):
        lhv1.read_legacy(framed({"version": 1}, graph([node("a", [1, 2])], distance="manhattan")))


def test_links_to_deleted_nodes_and_long_keys_are_stepped_over() -> None:
    long = "k" * 100
    payload = graph([node("a", [1, 2], ("gone", long)), node(long, [3, 4], ("a", "", "x" * 64))])
    old = lhv1.read_legacy(framed({"version": 1, "params": PARAMS}, payload))
    assert old.ids == ("a", long)


# ---- writing


def ring(items: int) -> Graph:
    rows = np.arange(items, dtype=np.uint32)
    starts = np.arange(items + 1, dtype=np.int64)
    return Graph((Layer(rows, starts, np.roll(rows, 1)),) if items else ())


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=90), JSON_VALUES, max_size=12), st.integers(1, 5))
def test_what_is_exported_is_read_back(items: dict[str, object], dimension: int) -> None:
    ids = tuple(items)
    texts = [json.dumps(value, ensure_ascii=False).encode() for value in items.values()]
    metadata = tuple(b"" if text in (b"null", b"{}") else text for text in texts)
    vectors = np.arange(len(ids) * dimension, dtype=np.float32).reshape(-1, dimension)
    params = IndexParams("näme", dimension, m=5, ef_search=77, distance=Distance.EUCLIDEAN)
    out = io.BytesIO()
    lhv1.write_v2(out, params, ids, vectors, metadata, ring(len(ids)))
    old = lhv1.read_legacy(out.getvalue())
    assert (old.version, old.params, old.ids, old.metadata) == (2, params, ids, metadata)
    assert old.vectors.tobytes() == vectors.tobytes()


def test_varints_are_those_of_go() -> None:
    known = {0: "00", -1: "01", 1: "02", 63: "7e", 64: "8001", -64: "7f", -65: "8101", 300: "d804"}
    assert {value: varint(value).hex() for value in known} == known
    assert varint(-(1 << 63)).hex() == "ffffffffffffffffff01"


def test_the_old_golden_file_of_one_item_is_what_we_would_write() -> None:
    old = lhv1.read_legacy(FILES["v2-single-1x4"])
    links = np.array([[0, 0]], dtype=np.uint32)
    out = io.BytesIO()
    one = graph_of_links(links, np.array([1]), [links])
    lhv1.write_v2(out, old.params, old.ids, old.vectors, old.metadata, one)
    assert out.getvalue() == FILES["v2-single-1x4"]


def test_flat_links_become_layers() -> None:
    links0 = np.array([[2, 1, 2, 9], [1, 0, 9, 9], [0, 9, 9, 9]], dtype=np.uint32)
    made = graph_of_links(links0, np.array([1, 0, 1]), [np.array([[1, 2], [1, 0]], dtype=np.uint32)])
    assert [layer.rows.tolist() for layer in made.layers] == [[0, 1, 2], [0, 2]]
    assert [layer.starts.tolist() for layer in made.layers] == [[0, 2, 3, 3], [0, 1, 2]]
    assert [layer.neighbours.tolist() for layer in made.layers] == [[1, 2, 0], [2, 0]]
    with pytest.raises(Invalid, match="one line of links per row"):
        graph_of_links(links0, np.array([1, 0, 0]), [links0[:2]])


def layer(rows: list[int], *neighbours: list[int]) -> Layer:
    starts = np.cumsum([0, *map(len, neighbours)])
    flat = np.array([row for line in neighbours for row in line], dtype=np.uint32)
    return Layer(np.array(rows, dtype=np.uint32), starts, flat)


@pytest.mark.parametrize(
    "made",
    [
        Graph(()),
        Graph((layer([0], []),)),
        Graph((layer([0, 0], [], []),)),
        Graph((layer([0, 1], [2], []),)),
        Graph((layer([0, 1], [1], [0]), layer([0], [1]))),
        Graph((layer([0, 1], [1], [0]), layer([0], []), layer([1], []))),
        Graph((layer([0, 1], [1], [0]), layer([], []))),
    ],
)
def test_a_graph_the_old_library_would_crash_on_is_not_written(made: Graph) -> None:
    out = io.BytesIO()
    params = IndexParams("x", 2)
    with pytest.raises(Invalid):
        lhv1.write_v2(out, params, ["a", "b"], np.ones((2, 2), np.float32), [b"", b""], made)
    assert out.getvalue() == b""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, i, m: (IndexParams("x", 2, distance=Distance.DOT), i, m), "knows cosine and euclidean"),
        (lambda p, i, m: (IndexParams("x", 3), i, m), "a vector and metadata for each"),
        (lambda p, i, m: (p, ["a", "a"], m), "distinct ids"),
        (lambda p, i, m: (p, i, [b""]), "a vector and metadata for each"),
        (lambda p, i, m: (p, i, [b"", b"{oops"]), "not JSON"),
        (lambda p, i, m: (p, i, [b"", b"\xff"]), "not valid unicode"),
        (lambda p, i, m: (p, ["a", "\ud800"], m), "not valid unicode"),
    ],
)
def test_what_the_old_format_cannot_hold_is_refused(
    change: Callable[..., tuple[IndexParams, list[str], list[bytes]]], message: str
) -> None:
    params, ids, metadata = change(IndexParams("x", 2), ["a", "b"], [b"", b""])
    with pytest.raises(Invalid, match=message):
        lhv1.write_v2(io.BytesIO(), params, ids, np.ones((2, 2), np.float32), metadata, ring(2))


def test_tens_of_thousands_of_nodes_stay_within_memory_of_the_file() -> None:
    items = 20_000
    ids = tuple(f"item-{j}" for j in range(items))
    vectors = np.zeros((items, 16), dtype=np.float32)
    links = np.concatenate(
        [np.full((items, 1), 16), (np.arange(items)[:, None] + np.arange(1, 17)) % items], axis=1
    ).astype(np.uint32)
    made = graph_of_links(links, np.zeros(items, dtype=np.int32))
    out = io.BytesIO()
    lhv1.write_v2(out, IndexParams("x", 16), ids, vectors, [b""] * items, made)
    data = out.getvalue()
    tracemalloc.start()
    try:
        assert lhv1.read_legacy(data).ids == ids
        assert tracemalloc.get_traced_memory()[1] < 6 * len(data)
    finally:
        tracemalloc.stop()
    assert legacy.decode(memoryview(data)[8 + int.from_bytes(data[4:8], "big") :], 16).header.m == 16
