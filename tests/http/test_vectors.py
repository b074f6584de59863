"""The vectors routes as the contract has them, and what goes beyond it."""

import base64
import io
import json
import struct
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

BINARY = {"content-type": "application/octet-stream"}
ARROW = {"content-type": "application/vnd.apache.arrow.stream"}


def add(client: httpx.Client, index: str, *items: dict[str, Any], **headers: str) -> httpx.Response:
    return client.post(f"{index}/add", json={"items": list(items)}, headers=headers)


def search(client: httpx.Client, index: str, **body: Any) -> list[dict[str, Any]]:
    answer = client.post(f"{index}/search", json=body)
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def ids(results: Sequence[dict[str, Any]]) -> list[str]:
    return [hit["id"] for hit in results]


def length(client: httpx.Client, index: str) -> int:
    return int(client.get(index).json()["length"])


def test_create_answers_params_and_length_and_a_second_one_conflicts(client: httpx.Client) -> None:
    body = {"name": "made", "dimension": 4, "m": 8, "ef_search": 32, "distance": "euclidean"}
    created = client.post("/vectors/index", json=body)
    assert (created.status_code, created.json()) == (201, {"params": body, "length": 0})
    assert created.headers["lakehouse-position"]
    assert client.post("/vectors/index", json=body).status_code == 409
    assert client.get("/vectors/index/made").json() == {"params": body, "length": 0}
    listed = client.get("/vectors/index").json()
    assert "made" in listed["names"]
    assert listed["count"] == len(listed["names"])


def test_zero_and_empty_parameters_mean_the_defaults_as_in_the_old_contract(client: httpx.Client) -> None:
    body = {"name": "zeros", "dimension": 4, "m": 0, "ef_search": 0, "distance": ""}
    params = client.post("/vectors/index", json=body).json()["params"]
    assert params == {"name": "zeros", "dimension": 4, "m": 16, "ef_search": 64, "distance": "cosine"}


def test_drop_answers_204_then_404(client: httpx.Client, index: str) -> None:
    dropped = client.delete(index)
    assert (dropped.status_code, dropped.content) == (204, b"")
    assert client.delete(index).status_code == 404
    assert client.get(index).status_code == 404


def test_add_answers_exactly_added_and_length_with_a_position(client: httpx.Client, index: str) -> None:
    answer = add(client, index, {"id": "d", "vector": [1, 1, 0]}, {"id": "a", "vector": [1, 0, 1]})
    assert (answer.status_code, answer.json()) == (200, {"added": 2, "length": 4})
    position = answer.headers["lakehouse-position"]
    seen = client.post(
        f"{index}/search", json={"vector": [1, 1, 0], "k": 1}, headers={"lakehouse-min-position": position}
    )
    assert ids(seen.json()["results"]) == ["d"]


def test_of_a_duplicated_id_the_last_one_wins(client: httpx.Client, index: str) -> None:
    answer = add(
        client,
        index,
        {"id": "twice", "vector": [1, 0, 0], "metadata": 1},
        {"id": "twice", "vector": [0, 1, 0], "metadata": 2},
    )
    assert answer.json() == {"added": 1, "length": 4}
    item = client.get(f"{index}/items/twice").json()
    assert item == {"id": "twice", "vector": [0.0, 1.0, 0.0], "metadata": 2}


def test_absent_metadata_keeps_and_null_or_an_empty_object_clears(client: httpx.Client, index: str) -> None:
    for metadata, expected in (({}, {"n": 1}), ({"metadata": None}, None)):
        add(client, index, {"id": "a", "vector": [1, 0, 0]} | metadata)
        assert client.get(f"{index}/items/a").json()["metadata"] == expected
    add(client, index, {"id": "a", "vector": [1, 0, 0], "metadata": {"n": 5}})
    client.post(f"{index}/add", content=b'{"items":[{"id":"a","vector":[1,0,0],"metadata":{ }}]}')
    assert client.get(f"{index}/items/a").json()["metadata"] is None


def test_metadata_comes_back_byte_for_byte(client: httpx.Client, index: str) -> None:
    text = b'{"z" : 1,  "a":12345678901234567890123, "a":1e300, "s":"\\u00e9\xc3\xa9\\/", "d":[ ] , "f":1.10}'
    body = b'{"items":[{"id":"raw","metadata":' + text + b',"vector":[1,2,3]}]}'
    assert client.post(f"{index}/add", content=body).status_code == 200
    assert text in client.get(f"{index}/items/raw").content
    assert text in client.post(f"{index}/search", json={"vector": [1, 2, 3], "k": 1}).content
    assert text in client.post(f"{index}/scroll", json={}).content


@pytest.mark.parametrize("number", [b"1e999", b"-1E+400", b"9" * 400])
def test_a_number_beyond_a_double_in_metadata_is_refused(
    client: httpx.Client, index: str, number: bytes
) -> None:
    """It is JSON, but most readers would refuse every answer that holds it."""
    body = b'{"items":[{"id":"x","vector":[1,2,3],"metadata":{"a":' + number + b"}}]}"
    before = client.get(index).json()
    answer = client.post(f"{index}/add", content=body)
    assert answer.status_code == 400
    assert "items[0].metadata" in answer.json()["detail"]
    assert client.get(index).json() == before


def test_keys_are_matched_without_regard_to_case_and_unknown_ones_passed_over(client: httpx.Client) -> None:
    answer = client.post("/vectors/index", json={"Name": "cased", "Dimension": 2, "Colour": "red"})
    assert answer.status_code == 201
    answer = client.post(
        "/vectors/index/cased/add",
        json={"Items": [{"ID": "a", "Vector": [1, 0], "Metadata": {"N": 1}, "Other": 2}]},
    )
    assert answer.json() == {"added": 1, "length": 1}
    answer = client.post("/vectors/index/cased/search", json={"Vector": [1, 0], "K": 1, "Filter": "N = 1"})
    assert [hit["id"] for hit in answer.json()["results"]] == ["a"]
    assert client.delete("/vectors/index/cased").status_code == 204


@pytest.mark.parametrize("metadata", [[1, "two", None], "text", 3.5, True, {"deep": {"er": [{}]}}])
def test_metadata_is_any_json(client: httpx.Client, index: str, metadata: object) -> None:
    add(client, index, {"id": "any", "vector": [1, 2, 3], "metadata": metadata})
    assert client.get(f"{index}/items/any").json()["metadata"] == metadata


def test_metadata_of_one_mebibyte_is_kept(client: httpx.Client, index: str) -> None:
    metadata = "x" * ((1 << 20) - 2)
    assert add(client, index, {"id": "big", "vector": [1, 2, 3], "metadata": metadata}).status_code == 200
    assert client.get(f"{index}/items/big").json()["metadata"] == metadata


@pytest.mark.parametrize(
    "item_id",
    ["x/y", "..", "a b", "ü", "日本語", "😀", "%2F", "?q=1#f", "\u0000", "\n", "k" * 1024, "é" * 512],
)
def test_an_id_is_any_unicode_up_to_one_kibibyte(client: httpx.Client, index: str, item_id: str) -> None:
    assert add(client, index, {"id": item_id, "vector": [3, 2, 1]}).status_code == 200
    escaped = "".join(f"%{byte:02X}" for byte in item_id.encode())
    found = client.get(f"{index}/items/{escaped}")
    assert (found.status_code, found.json()["id"]) == (200, item_id)
    assert ids(search(client, index, vector=[3, 2, 1], k=1)) == [item_id]


def test_search_answers_nearest_first_with_null_for_no_metadata(client: httpx.Client, index: str) -> None:
    results = search(client, index, vector=[0.1, 0.2, 1])
    assert ids(results) == ["c", "b", "a"]
    assert [hit["metadata"] for hit in results] == [None, {"n": 2}, {"n": 1}]
    assert results == sorted(results, key=lambda hit: hit["distance"])


@pytest.mark.parametrize(
    ("distance", "expected"), [("cosine", 1 - 0.6), ("euclidean", np.hypot(1 - 0.6, 0.8)), ("dot", -0.6)]
)
def test_distances_are_the_contracts(client: httpx.Client, distance: str, expected: float) -> None:
    index = f"/vectors/index/distance-{distance}"
    body = {"name": f"distance-{distance}", "dimension": 2, "distance": distance}
    client.post("/vectors/index", json=body)
    add(client, index, {"id": "x", "vector": [0.6, 0.8]})
    [hit] = search(client, index, vector=[1, 0])
    assert hit["distance"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("k", "found"), [(None, 10), (0, 10), (-5, 10), (1, 1), (12, 12), (1000, 20), (10**30, 20)]
)
def test_k_is_ten_when_absent_or_not_positive(client: httpx.Client, index: str, k: int, found: int) -> None:
    add(client, index, *({"id": f"i{j}", "vector": [1, j, 2]} for j in range(17)))
    assert len(search(client, index, vector=[1, 1, 1], k=k)) == found
    assert len(search(client, index, vector=[1, 1, 1])) == 10


def test_search_by_id_leaves_the_item_itself_out(client: httpx.Client, index: str) -> None:
    assert ids(search(client, index, id="a", k=2)) == ["b", "c"]
    assert client.post(f"{index}/search", json={"id": "gone"}).status_code == 404


def test_include_decides_what_comes_back(client: httpx.Client, index: str) -> None:
    [hit] = search(client, index, vector=[1, 0, 0], k=1, include=["vectors"])
    assert hit == {"id": "a", "distance": 0.0, "metadata": None, "vector": [1.0, 0.0, 0.0]}
    [hit] = search(client, index, vector=[1, 0, 0], k=1, include=["vectors", "metadata"])
    assert hit["metadata"] == {"n": 1}
    [hit] = search(client, index, vector=[1, 0, 0], k=1, include=[])
    assert hit == {"id": "a", "distance": 0.0, "metadata": None}


def test_a_filter_answers_with_its_plan(client: httpx.Client, index: str) -> None:
    body = {"vector": [1, 0, 0], "filter": "n >= 2"}
    answer = client.post(f"{index}/search", json=body).json()
    assert ids(answer["results"]) == ["b"]
    assert answer["plan"]["matched"] == 1
    assert "plan" not in client.post(f"{index}/search", json={"vector": [1, 0, 0]}).json()
    explained = client.post(f"{index}/search", json={"vector": [1, 0, 0], "explain": True}).json()
    assert explained["plan"]["strategy"]


def floats(*rows: Sequence[float]) -> bytes:
    return np.array(rows, dtype="<f4").tobytes()


def test_binary_base64_and_json_searches_agree(client: httpx.Client, index: str) -> None:
    query = [0.25, 0.5, 1.0]
    expected = search(client, index, vector=query, k=2)
    encoded = base64.b64encode(floats(query)).decode()
    assert search(client, index, vector=encoded, k=2) == expected
    answer = client.post(f"{index}/search?k=2", content=floats(query), headers=BINARY)
    assert answer.json() == {"results": expected}
    filtered = client.post(
        f"{index}/search",
        params={"filter": "n = 1", "include": "vectors,metadata", "consistency": "eventual", "ef": 5},
        content=floats(query),
        headers=BINARY,
    ).json()
    assert ids(filtered["results"]) == ["a"]
    assert filtered["results"][0]["vector"] == [1, 0, 0]


def test_a_batch_answers_as_single_searches_do(client: httpx.Client, index: str) -> None:
    queries = [[1, 0.1, 0], [0, 1, 0.1], [0.1, 0, 1]]
    expected = {"results": [search(client, index, vector=query, k=2) for query in queries]}
    as_json = client.post(f"{index}/search/batch", json={"vectors": queries, "k": 2})
    assert as_json.json() == expected
    binary = client.post(f"{index}/search/batch?k=2", content=floats(*queries), headers=BINARY)
    assert binary.json() == expected
    mixed = {"vectors": [base64.b64encode(floats(query)).decode() for query in queries], "k": 2}
    assert client.post(f"{index}/search/batch", json=mixed).json() == expected


def test_a_batch_has_at_most_1024_queries(client: httpx.Client, index: str) -> None:
    assert client.post(
        f"{index}/search/batch", content=floats(*[[1, 2, 3]] * 1024), headers=BINARY
    ).is_success
    refused = client.post(f"{index}/search/batch", content=floats(*[[1, 2, 3]] * 1025), headers=BINARY)
    assert refused.status_code == 400
    assert client.post(f"{index}/search/batch", json={"vectors": []}).status_code == 400


def binary_add(header: dict[str, Any], rows: npt.NDArray[np.float32]) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<I", len(text)) + text + rows.astype("<f4").tobytes()


def test_a_binary_add_keeps_every_bit_of_a_vector(client: httpx.Client, index: str) -> None:
    rows = np.array([[1e-42, 3.4e38, -0.0], [np.pi, np.e, 1 / 3]], dtype=np.float32)
    client.post("/vectors/index", json={"name": "bits", "dimension": 3, "distance": "dot"})
    path = "/vectors/index/bits"
    body = binary_add({"ids": ["tiny", "plain"], "metadata": [{"a": 1}, None]}, rows[[1, 1]])
    assert client.post(f"{path}/add", content=body, headers=BINARY).json() == {"added": 2, "length": 2}
    exact = np.array([[1e-42, 1.5e19, -0.0], rows[1]], dtype=np.float32)
    again = client.post(f"{path}/add", content=binary_add({"ids": ["tiny", "plain"]}, exact), headers=BINARY)
    assert again.json() == {"added": 2, "length": 2}
    for item_id, row in (("tiny", exact[0]), ("plain", exact[1])):
        raw = client.get(f"{path}/items/{item_id}", headers={"accept": "application/octet-stream"})
        assert raw.content == row.tobytes()
        read = np.array(client.get(f"{path}/items/{item_id}").json()["vector"], dtype=np.float32)
        assert read.tobytes() == row.tobytes()
    assert client.get(f"{path}/items/tiny").json()["metadata"] == {"a": 1}


def arrow_bytes(columns: dict[str, pa.Array], *, file: bool = False, **options: Any) -> bytes:
    batch = pa.record_batch(columns)
    sink = io.BytesIO()
    new = pa.ipc.new_file if file else pa.ipc.new_stream
    with new(sink, batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(batch)
        writer.write_batch(batch.slice(0, 1))
    return sink.getvalue()


VECTOR_TYPES = [
    pa.list_(pa.float32(), 3),
    pa.list_(pa.float32()),
    pa.list_(pa.float64()),
    pa.large_list(pa.float16()),
]


@pytest.mark.parametrize("file", [False, True])
@pytest.mark.parametrize("kind", VECTOR_TYPES, ids=str)
def test_arrow_adds_are_read_in_every_shape(
    client: httpx.Client, index: str, kind: pa.DataType, file: bool
) -> None:
    columns = {
        "id": pa.array(["p", "q"]),
        "vector": pa.array([[0.5, 1, 2], [4, 5, 6]], kind),
        "metadata": pa.array(['{"n" : 7}', None]),
    }
    answer = client.post(f"{index}/add", content=arrow_bytes(columns, file=file), headers=ARROW)
    assert (answer.status_code, answer.json()) == (200, {"added": 2, "length": 5}), answer.text
    item = client.get(f"{index}/items/p")
    assert item.json() == {"id": "p", "vector": [0.5, 1, 2], "metadata": {"n": 7}}
    assert b'{"n" : 7}' in item.content


def test_other_arrow_columns_become_a_metadata_object(client: httpx.Client, index: str) -> None:
    columns = {
        "id": pa.array(["p", "q"]),
        "vector": pa.array([[0.5, 1, 2], [4, 5, 6]], pa.list_(pa.float32(), 3)),
        "price": pa.array([1.5, None]),
        "tags": pa.array([["a"], []]),
    }
    assert client.post(f"{index}/add", content=arrow_bytes(columns), headers=ARROW).is_success
    assert client.get(f"{index}/items/p").json()["metadata"] == {"price": 1.5, "tags": ["a"]}
    assert client.get(f"{index}/items/q").json()["metadata"] == {"price": None, "tags": []}


def test_a_retried_key_is_one_batch_and_another_body_conflicts(client: httpx.Client, index: str) -> None:
    key = {"idempotency-key": "retry-1"}
    first = add(client, index, {"id": "once", "vector": [1, 2, 3]}, **key)
    add(client, index, {"id": "once", "vector": [3, 2, 1]})
    again = add(client, index, {"id": "once", "vector": [1, 2, 3]}, **key)
    assert (first.json(), again.json()) == ({"added": 1, "length": 4}, {"added": 1, "length": 4})
    assert client.get(f"{index}/items/once").json()["vector"] == [3, 2, 1]
    assert add(client, index, {"id": "other", "vector": [1, 2, 3]}, **key).status_code == 409
    assert length(client, index) == 4


@pytest.mark.parametrize("key", ["", "k" * 256, "two words", "caf\u00e9"])
def test_an_unusable_idempotency_key_is_refused(client: httpx.Client, index: str, key: str) -> None:
    headers = {b"idempotency-key": key.encode("latin-1")}
    body = {"items": [{"id": "x", "vector": [1, 2, 3]}]}
    refused = client.post(f"{index}/add", json=body, headers=list(headers.items()))
    assert refused.status_code == 400
    assert length(client, index) == 3


def test_delete_by_ids_and_by_filter(client: httpx.Client, index: str) -> None:
    by_ids = client.post(f"{index}/delete", json={"ids": ["a", "gone", "a"]})
    assert by_ids.json() == {"deleted": 1, "length": 2}
    assert by_ids.headers["lakehouse-position"]
    by_filter = client.post(f"{index}/delete", json={"filter": "n = 2"})
    assert by_filter.json() == {"deleted": 1, "length": 1}
    assert ids(search(client, index, vector=[1, 1, 1])) == ["c"]


def test_scroll_pages_through_every_item_in_the_order_of_ids(client: httpx.Client, index: str) -> None:
    add(client, index, *({"id": f"i{j:03}", "vector": [1, j, 2]} for j in range(100)))
    seen, after = [], None
    while True:
        page = client.post(
            f"{index}/scroll", json={"after": after, "limit": 7, "include": ["vectors"]}
        ).json()
        assert len(page["items"]) <= 7
        assert all(set(item) == {"id", "vector"} for item in page["items"])
        seen += ids(page["items"])
        after = page["after"]
        if after is None:
            break
    assert seen == ["a", "b", "c", *(f"i{j:03}" for j in range(100))]


def test_count_counts_all_or_what_matches(client: httpx.Client, index: str) -> None:
    assert client.post(f"{index}/count").json() == {"count": 3}
    assert client.post(f"{index}/count", json={"filter": "n < 2"}).json() == {"count": 1}


def test_merge_is_idempotent_and_clears_its_source(client: httpx.Client, index: str) -> None:
    dest = f"{index}-dest"
    client.post("/vectors/index", json={"name": dest.rpartition("/")[2], "dimension": 3})
    add(client, dest, {"id": "a", "vector": [9, 9, 9]})
    body = {"dest": dest.rpartition("/")[2]}
    expected = {"merged": 2, "skipped_already_present": 1, "failed": 0, "length_dest": 3, "length_source": 3}
    assert client.post(f"{index}/merge", json=body).json() == expected
    again = client.post(f"{index}/merge", json=body).json()
    assert (again["merged"], again["skipped_already_present"], again["length_dest"]) == (0, 3, 3)
    assert client.get(f"{dest}/items/a").json()["vector"] == [9, 9, 9]
    replaced = client.post(f"{index}/merge", json=body | {"on_conflict": "replace", "clear_source": True})
    assert (replaced.json()["length_source"], replaced.json()["length_dest"]) == (0, 3)
    assert client.get(f"{dest}/items/a").json() == {"id": "a", "vector": [1, 0, 0], "metadata": {"n": 1}}


@pytest.mark.parametrize(
    ("body", "status"), [({}, 400), ({"dest": ""}, 400), ({"dest": "same"}, 400), ({"dest": "nowhere"}, 404)]
)
def test_a_merge_that_cannot_be_is_refused(
    client: httpx.Client, index: str, body: dict[str, str], status: int
) -> None:
    if body.get("dest") == "same":
        body = {"dest": index.rpartition("/")[2]}
    assert client.post(f"{index}/merge", json=body).status_code == status
    assert client.post("/vectors/index/nowhere/merge", json={"dest": "fresh-0"}).status_code == 404


def test_a_merge_of_other_dimensions_is_refused(client: httpx.Client, index: str) -> None:
    client.post("/vectors/index", json={"name": "flat", "dimension": 2})
    assert client.post(f"{index}/merge", json={"dest": "flat"}).status_code == 400


def test_stats_recall_and_snapshot_answer(client: httpx.Client, index: str) -> None:
    assert client.get(f"{index}/stats").json()["length"] == 3
    recall = client.post(f"{index}/recall", json={"samples": 3, "k": 2}).json()
    assert (recall["samples"], recall["k"], recall["recall"]) == (3, 2, 1.0)
    snapshot = client.post(f"{index}/snapshot", json={"name": "keep"}).json()
    listed = client.get("/storage/list", params={"prefix": snapshot["files"][0]["key"]}).json()
    assert listed["objects"][0]["Size"] == snapshot["files"][0]["size"]
    assert client.post(f"{index}/snapshot", json={"name": "keep"}).status_code == 409


def test_every_route_of_a_missing_index_is_404(client: httpx.Client) -> None:
    path = "/vectors/index/missing"
    item = {"items": [{"id": "x", "vector": [1]}]}
    posts = {
        "add": item,
        "search": {"vector": [1]},
        "search/batch": {"vectors": [[1]]},
        "delete": {"ids": ["x"]},
    }
    posts |= {"scroll": {}, "count": {}, "recall": {}, "snapshot": {}}
    answers = [client.post(f"{path}/{verb}", json=body) for verb, body in posts.items()]
    answers += [
        client.get(path),
        client.get(f"{path}/items/x"),
        client.get(f"{path}/stats"),
        client.delete(path),
    ]
    assert {answer.status_code for answer in answers} == {404}


def test_a_position_of_another_life_conflicts(client: httpx.Client, index: str) -> None:
    headers = {"lakehouse-min-position": f"{'0' * 32}:1"}
    assert client.get(index, headers=headers).status_code == 409
    assert client.get(index, headers={"lakehouse-min-position": "soon"}).status_code == 400
