"""What the client hands back: tables that turn into Arrow, pandas, polars and HTML, and calls that are values."""

import asyncio
import inspect
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakehouse.client import (
    AsyncClient,
    Client,
    Found,
    FoundBatch,
    Match,
    Retries,
    Table,
    Upload,
    datasets,
    resources,
    sql,
    tabular,
)
from lakehouse.client.wire import chunks_async
from lakehouse.core import errors
from lakehouse.runtime import SystemRuntime

SOON = Retries(attempts_max=3, first_s=0.001)
FOUND = Found(
    (
        Match("a", 0.25, {"year": 2024, "title": "<b>one</b>"}),
        Match("b", 0.5, {"year": 2025, "distance": "far"}),
        Match("c", 0.75, None),
    ),
    {"strategy": "exact", "matched": 3},
)
ROWS = pa.table({"n": pa.array([1, None, 3]), "word": ["x", "y<&>", "z"], "list": [[1.5, 2.0], [], None]})


def stream(table: pa.Table, *, cut: bool = False) -> bytes:
    """As the server writes it: the last batch says whether a limit cut the rest off."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=2):
            writer.write_batch(batch)
        if cut:
            nothing = pa.RecordBatch.from_pylist([], schema=table.schema)
            writer.write_batch(nothing, custom_metadata={"lakehouse.truncated": "true"})
    return bytes(sink.getvalue())


def answering(*answers: httpx.Response) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    """Each answer in turn, the last for ever; and what was asked, bodies read."""
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        request.read()
        asked.append(request)
        return answers[min(len(asked), len(answers)) - 1]

    return httpx.MockTransport(answer), asked


def arrow_answer(table: pa.Table = ROWS, *, cut: bool = False, told: str = "") -> httpx.Response:
    body = stream(table, cut=cut)
    return httpx.Response(
        200,
        headers={"lakehouse-query-id": "q1", "lakehouse-truncated": told or ("maybe" if cut else "false")},
        content=body,
    )


# --- what was found


def test_matches_have_a_column_for_each_field_of_their_metadata() -> None:
    table = FOUND.to_arrow()
    assert table.column_names == ["id", "distance", "year", "title", "metadata.distance"]
    assert table["year"].to_pylist() == [2024, 2025, None]
    assert table["distance"].to_pylist() == [0.25, 0.5, 0.75]


def test_metadata_that_is_not_all_objects_is_one_column_and_mixed_values_are_json() -> None:
    found = Found((Match("a", 0.0, [1, "x"]), Match("b", 1.0, "text")))
    assert found.to_arrow()["metadata"].to_pylist() == ['[1, "x"]', '"text"']
    assert Found((Match("a", 0.0, {"x": 1}), Match("b", 0.0, {"x": "y"}))).to_arrow()["x"].to_pylist() == [
        "1",
        '"y"',
    ]


def test_vectors_keep_their_bits() -> None:
    vector = np.array([np.pi, -0.0], dtype=np.float32)
    table = Found((Match("a", 0.0, None, vector),)).to_arrow()
    assert np.array(table["vector"][0].as_py(), dtype=np.float32).tobytes() == vector.tobytes()


def test_found_is_a_sequence_of_matches() -> None:
    assert (len(FOUND), FOUND[0].id, [match.id for match in FOUND]) == (3, "a", ["a", "b", "c"])
    assert "matched=3" in repr(FOUND)


def test_nothing_found_is_an_empty_table_with_the_columns_that_are_always_there() -> None:
    assert Found(()).to_arrow().column_names == ["id", "distance"]
    assert Found(()).to_pandas().empty
    assert "0 rows" in repr(Found(()))


def test_a_batch_tells_which_query_found_what() -> None:
    batch = FoundBatch((FOUND, Found(()), Found((Match("z", 0.0),))))
    assert batch.to_arrow()["query"].to_pylist() == [0, 0, 0, 2]
    assert (len(batch), batch[0]) == (3, FOUND)
    assert "4 matches of 3 queries" in repr(batch)


# --- tables


def test_a_table_turns_into_what_the_reader_works_with() -> None:
    table = Table(ROWS)
    assert table.to_arrow() is ROWS
    assert table.rows() == [(1, "x", [1.5, 2.0]), (None, "y<&>", []), (3, "z", None)]
    assert table.dicts()[1] == {"n": None, "word": "y<&>", "list": []}
    assert list(table) == table.rows()
    assert (len(table), table.row_count, table.columns) == (3, 3, ("n", "word", "list"))
    assert isinstance(table.to_pandas(), pd.DataFrame)
    assert table.to_polars().shape == (3, 3)
    assert table.schema == ROWS.schema


def test_libraries_that_speak_the_arrow_stream_take_a_table_as_it_is() -> None:
    assert pl.DataFrame(Table(ROWS)).shape == (3, 3)
    assert pa.table(Table(ROWS)).equals(ROWS)
    assert pa.RecordBatchReader.from_stream(FOUND).read_all().num_rows == 3


def test_html_is_escaped_and_bounded() -> None:
    hostile = pa.table({"<script>": ["</td><script>alert(1)</script>"] * 1_000})
    html = Table(hostile, truncated=True)._repr_html_()
    assert "<script>" not in html
    assert html.count("<tr>") == tabular.SHOWN_ROWS + 1
    assert "1,000 rows, truncated, the first 20 shown" in html
    wide = pa.table({f"c{j}": [0] for j in range(200)})
    assert Table(wide)._repr_html_().count("<th>") == tabular.SHOWN_COLUMNS
    assert len(Table(pa.table({"x": ["y" * 1_000_000]}))._repr_html_()) < 1_000


def test_text_is_one_line_per_row() -> None:
    lines = repr(Table(pa.table({"x": ["one\ntwo", None], "v": [list(range(384)), [1]]}))).splitlines()
    assert len(lines) == 6
    assert "one⏎two" in lines[3]
    assert "[0, 1, 2, 3, … 384]" in lines[3]
    assert "NULL" in lines[4]


def test_columns_of_the_same_name_are_all_shown_and_kept() -> None:
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])
    assert Table(twice).rows() == [(1, 2)]
    assert Table(twice).to_arrow().num_columns == 2
    assert Table(twice)._repr_html_().count("<th>") == 2


def test_a_result_without_columns_has_its_rows() -> None:
    assert Table(pa.table({})).rows() == []


# --- SQL over the wire


def test_a_query_is_one_exchange_and_its_limits_go_along() -> None:
    transport, asked = answering(arrow_answer())
    with Client(transport=transport) as lake:
        table = lake.sql("SELECT $x", {"x": 1}, timeout_s=5, row_limit=10)
    assert (table.rows(), table.query_id, table.truncated) == (Table(ROWS).rows(), "q1", False)
    assert orjson.loads(asked[0].content) == {
        "sql": "SELECT $x",
        "parameters": {"x": 1},
        "timeout_s": 5,
        "row_limit": 10,
    }
    assert asked[0].headers["accept"] == "application/vnd.apache.arrow.stream"
    assert asked[0].extensions["timeout"]["read"] == 60.0


def test_truncation_is_told_by_the_head_or_by_the_end_of_the_stream() -> None:
    transport, _ = answering(arrow_answer(told="true"), arrow_answer(cut=True))
    with Client(transport=transport) as lake:
        assert lake.sql("SELECT 1").truncated
        ended = lake.sql("SELECT 1")
        assert (ended.truncated, ended.row_count) == (True, 3)
        assert "3 rows, truncated" in repr(ended)


def test_a_stream_that_ends_in_the_middle_is_no_result() -> None:
    whole = stream(ROWS)
    transport, _ = answering(httpx.Response(200, content=whole[: len(whole) // 2]))
    with (
        Client(transport=transport, retries=Retries(attempts_max=1)) as lake,
        pytest.raises(errors.Unavailable, match="middle"),
    ):
        lake.sql("SELECT 1")


def test_a_long_query_is_waited_for_in_turns_and_forgotten_at_the_end() -> None:
    running = httpx.Response(202, json={"id": "q1", "status": "running"})
    transport, asked = answering(running, running, arrow_answer(), httpx.Response(204))
    with Client(transport=transport) as lake:
        assert lake.sql("SELECT 1", timeout_s=600).row_count == 3
    assert [(request.method, request.url.path) for request in asked] == [
        ("POST", "/v1/sql"),
        ("GET", "/v1/sql/q1"),
        ("GET", "/v1/sql/q1"),
        ("DELETE", "/v1/sql/q1"),
    ]


def test_explaining_asks_for_the_profile_afterwards() -> None:
    status = httpx.Response(
        200, json={"id": "q1", "status": "succeeded", "profile": {"plan": "SCAN", "seconds": 0.1}}
    )
    transport, asked = answering(arrow_answer(), status)
    with Client(transport=transport) as lake:
        table = lake.sql("SELECT 1", explain=True)
    assert (table.plan, table.profile["seconds"]) == ("SCAN", 0.1)
    assert asked[1].url.params["status"] == "true"


def test_batches_come_as_they_arrive_and_say_at_the_end_whether_that_was_all() -> None:
    transport, _ = answering(arrow_answer(cut=True))
    with Client(transport=transport) as lake:
        batches = lake.sql_stream("SELECT 1")
        assert [batch.num_rows for batch in batches] == [2, 1]
        assert batches.truncated


async def test_the_awaiting_client_streams_alike() -> None:
    transport, _ = answering(arrow_answer(cut=True))
    async with AsyncClient(transport=transport) as lake:
        batches = lake.sql_stream("SELECT 1")
        assert [batch.num_rows async for batch in batches] == [2, 1]
        assert batches.truncated
        assert (await lake.sql("SELECT 1")).row_count == 3


def test_a_server_without_a_feature_is_not_asked_again() -> None:
    transport, asked = answering(httpx.Response(501, json={"detail": "not here"}))
    with Client(transport=transport, retries=SOON) as lake, pytest.raises(errors.Invalid, match="not here"):
        lake.list_resources()
    assert len(asked) == 1


# --- ingest


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.csv", "csv"),
        ("A.CSV.GZ", "csv"),
        ("a.tsv.zst", "tsv"),
        ("a.jsonl", "ndjson"),
        ("a.pq", "parquet"),
        ("a.tar.gz", None),
        ("a", None),
        ("", None),
    ],
)
def test_a_files_name_tells_its_format_compressed_or_not(name: str, format: str | None) -> None:
    assert datasets.format_of(name) == format


def manifest(**more: Any) -> dict[str, Any]:
    return {"name": "products", "version": 3, "schema_fingerprint": "f", "objects": [], **more}


def published() -> httpx.Response:
    told = {"manifest": manifest(row_count=2), "published": True, "rejects": {"count": 0, "rows": []}}
    return httpx.Response(200, json=told)


def test_a_file_is_sent_in_pieces_and_progress_is_told(tmp_path: Path) -> None:
    file = tmp_path / "products.csv"
    file.write_bytes(b"x" * (3 << 20))
    transport, asked = answering(published())
    told: list[tuple[int, int]] = []
    with Client(transport=transport) as lake:
        done = lake.ingest(
            file, "products", mode="append", progress=lambda sent, total: told.append((sent, total))
        )
    assert (done.published, done.dataset.version, done.dataset.row_count) == (True, 3, 2)
    assert told == [(j << 20, 3 << 20) for j in range(4)]
    assert asked[0].content == file.read_bytes()
    assert asked[0].headers["content-length"] == str(3 << 20)
    assert asked[0].headers["content-type"] == "text/csv"
    assert dict(asked[0].url.params) == {"name": "products", "mode": "append", "filename": "products.csv"}


def test_several_files_are_one_form_that_is_sent_in_pieces(tmp_path: Path) -> None:
    files = [tmp_path / "a.csv", tmp_path / 'b "1"\n.ndjson']
    files[0].write_bytes(b"x" * ((1 << 20) + 5))
    files[1].write_bytes(b'{"a": 1}\n')
    transport, asked = answering(published())
    told: list[tuple[int, int]] = []
    with Client(transport=transport) as lake:
        lake.ingest(files, "products", progress=lambda sent, total: told.append((sent, total)))
    total = (1 << 20) + 14
    assert told == [(0, total), (1 << 20, total), (total - 9, total), (total, total)]
    media_type, _, boundary = asked[0].headers["content-type"].partition("; boundary=")
    assert (media_type, asked[0].headers["content-length"]) == (
        "multipart/form-data",
        str(len(asked[0].content)),
    )
    head, first, second, end = asked[0].content.split(b"--" + boundary.encode())
    assert (head, end) == (b"", b"--\r\n")
    assert first.endswith(b"\r\n\r\n" + files[0].read_bytes() + b"\r\n")
    assert b'name="file"; filename="a.csv"\r\ncontent-type: text/csv\r\n' in first
    assert b'filename="b %221%22%0A.ndjson"\r\n' in second
    assert dict(asked[0].url.params) == {"name": "products"}


def test_reader_options_go_along_and_cannot_pose_as_parameters(tmp_path: Path) -> None:
    transport, asked = answering(published())
    with Client(transport=transport) as lake:
        lake.ingest(b"a;b\n1;2\n", "products", format="csv", options={"delimiter": ";", "header": True})
        with pytest.raises(errors.Invalid, match="mode"):
            lake.ingest(b"", "products", options={"mode": "append"})
    assert dict(asked[0].url.params) == {
        "name": "products",
        "format": "csv",
        "delimiter": ";",
        "header": "true",
    }


def test_a_repeated_ingest_sends_the_file_from_its_beginning(tmp_path: Path) -> None:
    file = tmp_path / "products.csv"
    file.write_bytes(b"a,b\n1,2\n")
    transport, asked = answering(httpx.Response(503, json={"outcome": "unknown"}), published())
    with Client(transport=transport, retries=SOON) as lake:
        lake.ingest(str(file), "products")
    assert [request.content for request in asked] == [b"a,b\n1,2\n"] * 2


@pytest.mark.parametrize("kind", ["arrow", "pandas", "polars", "result"])
def test_frames_become_parquet(kind: str) -> None:
    frame: Any = {
        "arrow": ROWS,
        "pandas": pd.DataFrame({"n": [1, 2, 3]}),
        "polars": pl.DataFrame({"n": [1, 2, 3]}),
        "result": Table(ROWS),
    }[kind]
    transport, asked = answering(published())
    with Client(transport=transport) as lake:
        lake.ingest(frame, "products")
    sent = pq.read_table(pa.BufferReader(asked[0].content))
    assert (sent.num_rows, sent.column_names[0]) == (3, "n")
    assert asked[0].url.params["format"] == "parquet"


async def test_the_awaiting_client_ingests_alike(tmp_path: Path) -> None:
    file = tmp_path / "products.ndjson"
    file.write_bytes(b'{"a":1}\n')

    async def answer(request: httpx.Request) -> httpx.Response:
        assert await request.aread() == file.read_bytes()
        return published()

    async with AsyncClient(transport=httpx.MockTransport(answer)) as lake:
        assert (await lake.ingest(file, "products")).published


def test_what_cannot_be_sent_is_refused_before_anything_is(tmp_path: Path) -> None:
    transport, asked = answering(published())
    with Client(transport=transport) as lake:
        with pytest.raises(errors.NotFound, match="no such file"):
            lake.ingest(tmp_path / "missing.csv", "products")
        with pytest.raises(errors.Invalid, match="cannot be read"):
            lake.ingest(tmp_path, "products")
        with pytest.raises(errors.Invalid, match="at least one"):
            lake.ingest([], "products")
        with pytest.raises(errors.Invalid, match="path of a file"):
            lake.ingest([b"a"], "products")  # type: ignore[list-item]
        with pytest.raises(errors.Invalid, match="int"):
            lake.ingest(5, "products")  # type: ignore[arg-type]
        with pytest.raises(errors.Invalid, match="xlsx"):
            lake.ingest(b"", "products", format="xlsx")  # type: ignore[arg-type]
    assert asked == []


def test_a_file_that_shrinks_while_it_is_sent_is_told(tmp_path: Path) -> None:
    file = tmp_path / "products.csv"
    file.write_bytes(b"123456")
    upload = Upload.of(file)
    file.write_bytes(b"123")
    with pytest.raises(errors.Invalid, match="shorter"):
        list(upload.chunks())


async def test_an_upload_is_read_off_the_loop(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"12345")
    readers: set[int] = set()
    upload = Upload.of(file, lambda sent, total: readers.add(threading.get_ident()))
    runtime = SystemRuntime()
    try:
        assert b"".join([chunk async for chunk in chunks_async(upload, runtime)]) == b"12345"
    finally:
        runtime.close()
    assert threading.get_ident() not in readers


def test_a_manifest_of_any_age_is_a_dataset() -> None:
    old = datasets.dataset_of(
        {"name": "x", "version": 1, "schema_fingerprint": "f", "objects": [{"key": "k"}]}
    )
    assert (old.row_count, old.columns, old.rejected, old.files) == (None, (), 0, 1)
    new = datasets.dataset_of(
        manifest(
            row_count=5,
            bytes=9,
            schema=[{"name": "id", "type": "BIGINT", "nullable": True}],
            rejects={"count": 2, "key": "r"},
        )
    )
    assert (new.row_count, new.bytes, new.columns, new.rejected) == (5, 9, (("id", "BIGINT"),), 2)


# --- resources

VECTOR_INDEX = {"kind": "VectorIndex", "metadata": {"name": "docs"}, "spec": {"dimension": 3}}


def test_yaml_of_several_documents_is_applied_in_order() -> None:
    version = "apiVersion: lakehouse.agentview.dev/v1alpha1"
    text = f"""
{version}
kind: Dataset
metadata: {{name: a}}
---
---
{version}
kind: VectorIndex
metadata: {{name: b}}
"""
    transport, asked = answering(
        httpx.Response(201, json={"result": "created", "resource": VECTOR_INDEX | {"status": {}}})
    )
    with Client(transport=transport) as lake:
        applied = lake.apply(text)
    assert [request.url.path for request in asked] == [
        "/v1/resources/Dataset/a",
        "/v1/resources/VectorIndex/b",
    ]
    assert [one.result for one in applied] == ["created", "created"]


def test_a_resource_says_whether_it_is_ready() -> None:
    conditions = [{"type": "Ready", "status": "True"}, {"type": "UpToDate", "status": "False"}]
    one = resources.resource_of(VECTOR_INDEX | {"status": {"conditions": conditions}})
    assert (one.ready, one.conditions, one.spec["dimension"]) == (True, {"Ready": True, "UpToDate": False}, 3)
    assert not resources.resource_of(VECTOR_INDEX).ready


@pytest.mark.parametrize("wanted", ["a: [", "just text", "kind: X", {"kind": "X"}, [VECTOR_INDEX, 3]])
def test_what_is_no_resource_is_refused_before_any_is_applied(wanted: Any) -> None:
    transport, asked = answering(httpx.Response(200))
    with Client(transport=transport) as lake, pytest.raises(errors.Invalid):
        lake.apply(wanted)
    assert asked == []


# --- the two clients


def public(client: type) -> dict[str, Any]:
    renamed = {"aclose": "close"}
    return {
        renamed.get(name, name): member
        for name, member in inspect.getmembers(client, callable)
        if not name.startswith("_")
    }


def test_both_clients_have_the_same_methods_with_the_same_parameters() -> None:
    blocking, awaiting = public(Client), public(AsyncClient)
    assert set(blocking) == set(awaiting)
    for name, method in blocking.items():
        ours, theirs = inspect.signature(method), inspect.signature(awaiting[name])
        assert list(ours.parameters) == list(theirs.parameters), name
        assert method.__doc__, name


def test_a_made_method_shows_its_own_parameters_and_result() -> None:
    signature = inspect.signature(Client.search)
    assert list(signature.parameters) == ["self", "name", "vector", "options"]
    assert signature.return_annotation is Found
    assert Client.search.__doc__ == "The nearest items to `vector`."


def test_a_query_may_run_as_long_as_its_timeout_before_the_client_gives_up() -> None:
    assert sql.request("x", None, "*/*", {"timeout_s": 40.0}).timeout_s == 60.0
    assert sql.is_long({"timeout_s": 600.0})
    assert sql.is_long({"wait_s": 0.0})
    assert not sql.is_long({})


def test_a_cancelled_wait_ends_the_query() -> None:
    running = httpx.Response(202, json={"id": "q1", "status": "running"})
    asked: list[str] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.method)
        if request.method == "GET":
            await asyncio.Event().wait()
        return running if request.method == "POST" else httpx.Response(204)

    async def run() -> None:
        async with AsyncClient(transport=httpx.MockTransport(answer)) as lake:
            task = asyncio.create_task(lake.sql("SELECT 1", wait_s=0.0))
            while "GET" not in asked:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())
    assert "DELETE" in asked


def test_the_package_names_its_parts_without_importing_them() -> None:
    import lakehouse

    assert lakehouse.Client is Client
    assert set(lakehouse.__all__) <= set(dir(lakehouse))
    with pytest.raises(AttributeError, match="nothing_like_it"):
        lakehouse.nothing_like_it  # noqa: B018
