"""Bad input gets a clear error and changes nothing."""

import io
import json
import struct
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

BINARY = {"content-type": "application/octet-stream"}
ARROW = {"content-type": "application/vnd.apache.arrow.stream"}


def state(client: httpx.Client, index: str) -> tuple[Any, ...]:
    """Length, position and every item."""
    described = client.get(index)
    items = client.post(f"{index}/scroll", json={"include": ["vectors", "metadata"]}).json()
    return described.json()["length"], described.headers["lakehouse-position"], items


def refuses(
    client: httpx.Client, index: str, path: str, body: bytes, *, headers: dict[str, str] | None = None
) -> str:
    """Assert 400 as a problem and that nothing changed; the detail."""
    before = state(client, index)
    answer = client.post(f"{index}/{path}", content=body, headers=headers)
    assert answer.status_code == 400, (answer.status_code, answer.text)
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert (problem["status"], problem["title"]) == (400, "Bad Request")
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert state(client, index) == before
    return str(problem["detail"])


GOOD = '{"id":"new","vector":[1,2,3]}'

BAD_ADDS = {
    "empty": (b"", "not JSON"),
    "truncated": (b'{"items":[{"id":"x","vector":[1,2', "truncated"),
    "not JSON": (b"items=1", "byte 0"),
    "trailing": (b'{"items":[]} x', "trailing"),
    "a list": (b"[]", "expected `object`"),
    "no items": (b'{"items":[]}', "no items"),
    "items absent": (b"{}", "no items"),
    "items null": (b'{"items":null}', "items"),
    "items a string": (b'{"items":"x"}', "items"),
    "an item a number": (b'{"items":[%s,7]}' % GOOD.encode(), "items[1]"),
    "id absent": (b'{"items":[%s,{"vector":[1,2,3]}]}' % GOOD.encode(), "items[1]"),
    "id empty": (b'{"items":[%s,{"id":"","vector":[1,2,3]}]}' % GOOD.encode(), "items[1].id is empty"),
    "id a number": (b'{"items":[{"id":7,"vector":[1,2,3]}]}', "items[0].id"),
    "id null": (b'{"items":[{"id":null,"vector":[1,2,3]}]}', "items[0].id"),
    "id too long": (b'{"items":[{"id":"%s","vector":[1,2,3]}]}' % (b"k" * 1025), "items[0].id"),
    "id half a pair": (b'{"items":[{"id":"\\ud800","vector":[1,2,3]}]}', "not JSON"),
    "id not UTF-8": (b'{"items":[{"id":"\xff","vector":[1,2,3]}]}', "UTF-8"),
    "id an encoded surrogate": (b'{"items":[{"id":"\xed\xa0\x80","vector":[1,2,3]}]}', "UTF-8"),
    "vector absent": (b'{"items":[{"id":"x"}]}', "items[0]"),
    "vector null": (b'{"items":[{"id":"x","vector":null}]}', "items[0].vector"),
    "vector an object": (b'{"items":[{"id":"x","vector":{}}]}', "items[0].vector"),
    "vector too short": (b'{"items":[%s,{"id":"x","vector":[1,2]}]}' % GOOD.encode(), "items[1].vector"),
    "vector too long": (b'{"items":[{"id":"x","vector":[1,2,3,4]}]}', "items[0].vector"),
    "vector empty": (b'{"items":[{"id":"x","vector":[]}]}', "items[0].vector"),
    "a string inside": (b'{"items":[{"id":"x","vector":[1,"2",3]}]}', "items[0].vector[1]"),
    "a boolean inside": (b'{"items":[{"id":"x","vector":[1,true,3]}]}', "items[0].vector[1]"),
    "a null inside": (b'{"items":[{"id":"x","vector":[1,null,3]}]}', "items[0].vector[1]"),
    "NaN": (b'{"items":[{"id":"x","vector":[1,NaN,3]}]}', "not JSON"),
    "Infinity": (b'{"items":[{"id":"x","vector":[1,Infinity,3]}]}', "not JSON"),
    "1e999": (b'{"items":[%s,{"id":"x","vector":[1,1e999,3]}]}' % GOOD.encode(), "items[1].vector[1]"),
    "over float32": (b'{"items":[{"id":"x","vector":[1,1e39,3]}]}', "items[0].vector"),
    "norm zero": (b'{"items":[%s,{"id":"x","vector":[0,0,0]}]}' % GOOD.encode(), "items[1].vector"),
    "norm below float32": (b'{"items":[{"id":"x","vector":[1e-30,0,0]}]}', "items[0].vector"),
    "bad base64": (b'{"items":[{"id":"x","vector":"@@@@"}]}', "items[0].vector"),
    "base64 of 5 bytes": (b'{"items":[{"id":"x","vector":"AAAAAAA="}]}', "items[0].vector"),
    "base64 of NaN": (b'{"items":[{"id":"x","vector":"AACAPwAAgD8AAMB/"}]}', "items[0].vector"),
    "metadata malformed": (b'{"items":[{"id":"x","vector":[1,2,3],"metadata":{a:1}}]}', "byte"),
    "metadata not UTF-8": (b'{"items":[{"id":"x","vector":[1,2,3],"metadata":"\xff"}]}', "UTF-8"),
    "metadata half a pair": (b'{"items":[{"id":"x","vector":[1,2,3],"metadata":"\\udc00 "}]}', ""),
    "metadata nested": (
        b'{"items":[{"id":"x","vector":[1,2,3],"metadata":%s1%s}]}' % (b"[" * 129, b"]" * 129),
        "items[0].metadata",
    ),
    "metadata over a mebibyte": (
        b'{"items":[{"id":"x","vector":[1,2,3],"metadata":"%s"}]}' % (b"x" * (1 << 20)),
        "items[0].metadata",
    ),
    "deep nesting": (b'{"items":' + b"[" * 100_000, "nested"),
    "deep nesting beside": (b'{"other":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested"),
}


@pytest.mark.parametrize("case", BAD_ADDS)
def test_a_bad_add_is_refused_and_changes_nothing(client: httpx.Client, index: str, case: str) -> None:
    body, expected = BAD_ADDS[case]
    assert expected in refuses(client, index, "add", body)


def test_the_position_of_malformed_json_is_told(client: httpx.Client, index: str) -> None:
    assert "byte 10" in refuses(client, index, "add", b'{"items":[}')


def test_a_bad_item_deep_in_a_large_batch_is_named(client: httpx.Client, index: str) -> None:
    items = [{"id": f"i{j}", "vector": [1, 2, 3], "metadata": {"pad": "x" * 100}} for j in range(2_000)]
    items[1_999]["vector"] = [1, 2]
    assert "items[1999].vector" in refuses(client, index, "add", json.dumps({"items": items}).encode())


BAD_SEARCHES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not JSON"),
    "nothing": (b"{}", "vector"),
    "both": (b'{"vector":[1,2,3],"id":"a"}', "not both"),
    "wrong dimension": (b'{"vector":[1,2]}', "dimension"),
    "NaN": (b'{"vector":[NaN,1,2]}', "not JSON"),
    "1e999": (b'{"vector":[1e999,1,2]}', "vector[0]"),
    "over float32": (b'{"vector":[1e39,1,2]}', "vector"),
    "norm zero": (b'{"vector":[0,0,0]}', "norm zero"),
    "k 1.5": (b'{"vector":[1,2,3],"k":1.5}', "k"),
    "k 1.0": (b'{"vector":[1,2,3],"k":1.0}', "k"),
    "k text": (b'{"vector":[1,2,3],"k":"10"}', "k"),
    "k true": (b'{"vector":[1,2,3],"k":true}', "k"),
    "k 1e2": (b'{"vector":[1,2,3],"k":1e2}', "k"),
    "ef 0": (b'{"vector":[1,2,3],"ef":0}', "ef"),
    "ef huge": (b'{"vector":[1,2,3],"ef":100000}', "ef"),
    "consistency": (b'{"vector":[1,2,3],"consistency":"weak"}', "consistency"),
    "include": (b'{"vector":[1,2,3],"include":["secrets"]}', "include"),
    "filter a number": (b'{"vector":[1,2,3],"filter":7}', "filter"),
    "filter empty": (b'{"vector":[1,2,3],"filter":""}', ""),
    "filter unfinished": (b'{"vector":[1,2,3],"filter":"n >"}', ""),
    "filter a statement": (b'{"vector":[1,2,3],"filter":"n = 1; DROP TABLE x"}', ""),
    "filter a subquery": (b'{"vector":[1,2,3],"filter":"n IN (SELECT 1)"}', ""),
    "filter deep": (b'{"vector":[1,2,3],"filter":"' + b"(" * 5_000 + b"n = 1" + b")" * 5_000 + b'"}', ""),
    "id a number": (b'{"id":7}', "id"),
}


@pytest.mark.parametrize("case", BAD_SEARCHES)
def test_a_bad_search_is_refused(client: httpx.Client, index: str, case: str) -> None:
    body, expected = BAD_SEARCHES[case]
    assert expected in refuses(client, index, "search", body)


@pytest.mark.parametrize("path", ["search", "scroll", "count", "delete"])
def test_a_filter_that_does_not_parse_is_refused_everywhere(
    client: httpx.Client, index: str, path: str
) -> None:
    body = {"filter": "n = = 1"} | ({"vector": [1, 2, 3]} if path == "search" else {})
    assert refuses(client, index, path, json.dumps(body).encode())


@pytest.mark.parametrize("path", ["search", "scroll", "count", "delete"])
def test_a_filter_on_a_field_that_no_item_has_is_refused_by_name(
    client: httpx.Client, index: str, path: str
) -> None:
    body = {"filter": "nobody_has_it = 1"} | ({"vector": [1, 2, 3]} if path == "search" else {})
    assert "nobody_has_it" in refuses(client, index, path, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("path", "query", "size"),
    [
        ("search", "", 0),
        ("search", "", 11),
        ("search", "", 24),
        ("search", "k=ten", 12),
        ("search", "k=1.5", 12),
        ("search", "ef=0", 12),
        ("search", "include=secrets", 12),
        ("search", "consistency=weak", 12),
        ("search", "filter=n%20%3D", 12),
        ("search", "filter=%ff", 12),
        ("search/batch", "", 13),
        ("search/batch", "", 0),
    ],
)
def test_a_bad_binary_search_is_refused(
    client: httpx.Client, index: str, path: str, query: str, size: int
) -> None:
    body = np.ones(8, dtype="<f4").tobytes()[:size]
    refuses(client, index, f"{path}?{query}", body, headers=BINARY)


def framed(header: bytes, rows: bytes) -> bytes:
    return struct.pack("<I", len(header)) + header + rows


ROW = np.array([1, 2, 3], dtype="<f4").tobytes()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x01\x00",
        struct.pack("<I", 0xFFFFFFFF) + b"{}",
        framed(b"{}", ROW),
        framed(b'{"ids":[]}', b""),
        framed(b'{"ids":["x"]}', b""),
        framed(b'{"ids":["x"]}', ROW[:-1]),
        framed(b'{"ids":["x"]}', ROW * 2),
        framed(b'{"ids":["x","y"]}', ROW),
        framed(b'{"ids":["x"],"metadata":[1,2]}', ROW),
        framed(b'{"ids":[""]}', ROW),
        framed(b'{"ids":["x"]}', np.array([np.nan, 1, 2], dtype="<f4").tobytes()),
        framed(b'{"ids":["x"]}', np.array([np.inf, 1, 2], dtype="<f4").tobytes()),
        framed(b'{"ids":["\xff"]}', ROW),
    ],
)
def test_a_bad_binary_add_is_refused(client: httpx.Client, index: str, body: bytes) -> None:
    refuses(client, index, "add", body, headers=BINARY)


VECTORS = pa.array([[1, 2, 3]], pa.list_(pa.float32(), 3))


def arrow(columns: dict[str, pa.Array], **options: Any) -> bytes:
    batch = pa.record_batch(columns)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


IDS = pa.array(["x"])
BAD_ARROWS: dict[str, bytes] = {
    "empty": b"",
    "not Arrow": b"x" * 200,
    "truncated": arrow({"id": IDS, "vector": VECTORS})[:-80],
    "no id": arrow({"vector": VECTORS}),
    "no vector": arrow({"id": IDS}),
    "id a number": arrow({"id": pa.array([1]), "vector": VECTORS}),
    "id null": arrow({"id": pa.array([None], pa.string()), "vector": VECTORS}),
    "vector null": arrow({"id": IDS, "vector": pa.array([None], pa.list_(pa.float32(), 3))}),
    "a null inside": arrow({"id": IDS, "vector": pa.array([[1, None, 3]], pa.list_(pa.float32(), 3))}),
    "wrong dimension": arrow({"id": IDS, "vector": pa.array([[1, 2]], pa.list_(pa.float32(), 2))}),
    "ragged": arrow({"id": IDS, "vector": pa.array([[1, 2]], pa.list_(pa.float32()))}),
    "integers": arrow({"id": IDS, "vector": pa.array([[1, 2, 3]], pa.list_(pa.int32()))}),
    "no rows": arrow({"id": IDS.slice(0, 0), "vector": VECTORS.slice(0, 0)}),
    "metadata not JSON": arrow({"id": IDS, "vector": VECTORS, "metadata": pa.array(["{"])}),
    "metadata empty": arrow({"id": IDS, "vector": VECTORS, "metadata": pa.array([""])}),
    "metadata twice": arrow({"id": IDS, "vector": VECTORS, "metadata": pa.array(["1"]), "n": pa.array([1])}),
    "dictionary": arrow({"id": IDS.dictionary_encode(), "vector": VECTORS}),
    "binary column": arrow({"id": IDS, "vector": VECTORS, "raw": pa.array([b"\xff"])}),
    "compressed": arrow({"id": IDS, "vector": VECTORS}, compression="zstd"),
    "over float32": arrow({"id": IDS, "vector": pa.array([[1e300, 2, 3]], pa.list_(pa.float64(), 3))}),
}


@pytest.mark.parametrize("case", BAD_ARROWS)
def test_a_bad_arrow_add_is_refused(client: httpx.Client, index: str, case: str) -> None:
    refuses(client, index, "add", BAD_ARROWS[case], headers=ARROW)


def test_no_flipped_byte_of_an_arrow_body_makes_a_500(client: httpx.Client, index: str) -> None:
    good = arrow({"id": IDS, "vector": VECTORS, "metadata": pa.array(['{"n":1}'])})
    for at in range(0, len(good), 3):
        flipped = bytearray(good)
        flipped[at] ^= 0x55
        answer = client.post(f"{index}/add", content=bytes(flipped), headers=ARROW)
        assert answer.status_code in (200, 400), (at, answer.text)


BAD_CREATES: list[dict[str, Any]] = [
    {},
    {"name": "x"},
    {"dimension": 3},
    {"name": "", "dimension": 3},
    {"name": "a/b", "dimension": 3},
    {"name": "..", "dimension": 3},
    {"name": "x.lhv1", "dimension": 3},
    {"name": "x" * 129, "dimension": 3},
    {"name": "x", "dimension": 0},
    {"name": "x", "dimension": -1},
    {"name": "x", "dimension": 65_536},
    {"name": "x", "dimension": 3.5},
    {"name": "x", "dimension": "3"},
    {"name": "x", "dimension": True},
    {"name": "x", "dimension": 10**40},
    {"name": "x", "dimension": 3, "m": 1},
    {"name": "x", "dimension": 3, "m": -4},
    {"name": "x", "dimension": 3, "ef_search": 10**9},
    {"name": "x", "dimension": 3, "distance": "manhattan"},
    {"name": "x", "dimension": 3, "shards": -1},
    {"name": "x", "dimension": 3, "shards": 10**9},
    {"name": 7, "dimension": 3},
]


@pytest.mark.parametrize("body", BAD_CREATES, ids=str)
def test_a_bad_create_is_refused(client: httpx.Client, body: dict[str, Any]) -> None:
    before = client.get("/vectors/index").json()
    answer = client.post("/vectors/index", json=body)
    assert answer.status_code == 400, answer.text
    assert client.get("/vectors/index").json() == before


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("delete", {}),
        ("delete", {"ids": ["a"], "filter": "n = 1"}),
        ("delete", {"ids": []}),
        ("delete", {"ids": [""]}),
        ("delete", {"ids": "a"}),
        ("scroll", {"limit": "many"}),
        ("scroll", {"after": 7}),
        ("recall", {"samples": 0}),
        ("recall", {"samples": 10**9}),
        ("snapshot", {"name": "../x"}),
        ("snapshot", {"name": ""}),
        ("merge", {"dest": 7}),
        ("merge", {"dest": "x", "on_conflict": "explode"}),
    ],
)
def test_other_bad_bodies_are_refused(
    client: httpx.Client, index: str, path: str, body: dict[str, Any]
) -> None:
    refuses(client, index, path, json.dumps(body).encode())


def test_a_compressed_body_is_415(client: httpx.Client, index: str) -> None:
    answer = client.post(f"{index}/search", content=b"\x1f\x8b", headers={"content-encoding": "gzip"})
    assert answer.status_code == 415
    assert answer.headers["content-type"] == "application/problem+json"
