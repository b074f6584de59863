"""Every format, compressed or not: the same rows come out, and what is not what it says is refused by name."""

import codecs
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.lake import Lake
from lakehouse.core.errors import Invalid
from lakehouse.ingest import Format, Mode
from lakehouse.ingest.formats import Compression, compression_of, guess
from lakehouse.ingest.process import ProcessConverting

ROWS = [{"id": 1, "name": "a,b", "price": 2.5}, {"id": 2, "name": "é", "price": None}]
EXPECTED = [(1, "a,b", 2.5), (2, "é", None)]


def parquet(rows: list[dict[str, object]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


CONTENT = {
    "csv": 'id,name,price\n1,"a,b",2.5\n2,é,\n'.encode(),
    "tsv": "id\tname\tprice\n1\ta,b\t2.5\n2\té\t\n".encode(),
    "json": json.dumps(ROWS).encode(),
    "ndjson": b"".join(json.dumps(row).encode() + b"\n" for row in ROWS),
    "parquet": parquet(ROWS),
}


def zstd(data: bytes) -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(data)
    return bytes(out.getvalue().to_pybytes())


PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd}


@pytest.mark.parametrize("compression", PACK)
@pytest.mark.parametrize("kind", CONTENT)
async def test_a_format_gives_the_same_rows_compressed_or_not(
    lake: Lake, kind: str, compression: str
) -> None:
    path = lake.write(f"rows.{kind}{compression}", PACK[compression](CONTENT[kind]))
    done = await lake.ingest(path)
    assert lake.columns(done) == ["id BIGINT", "name VARCHAR", "price DOUBLE"]
    assert await lake.rows() == EXPECTED
    assert done.manifest.row_count == 2


@pytest.mark.parametrize("compression", PACK)
@pytest.mark.parametrize("kind", CONTENT)
async def test_a_format_is_recognised_without_a_name(lake: Lake, kind: str, compression: str) -> None:
    await lake.ingest(lake.write("rows", PACK[compression](CONTENT[kind])))
    assert await lake.rows() == EXPECTED


@pytest.mark.parametrize(
    ("name", "content_type", "head", "expected"),
    [
        ("a.CSV", "", b"", Format.CSV),
        ("a.csv.gz", "application/json", b"{}", Format.CSV),
        ("a.jsonl", "", b"", Format.NDJSON),
        ("a", "text/tab-separated-values; charset=utf-8", b"a,b", Format.TSV),
        ("a", "application/octet-stream", b"PAR1xxxx", Format.PARQUET),
        ("a", "", b"\xef\xbb\xbf[{}]", Format.JSON),
        ("a", "", b'{"a": 1}\n{"a": 2}\n', Format.NDJSON),
        ("a", "", b'{"a":\n 1}', Format.JSON),
        ("a.json", "", b'{"a": 1}\n{"a": 2}\n', Format.NDJSON),
        ("a.json", "", b'[{"a": 1},\n{"a": 2}]\n', Format.JSON),
        ("a", "", b"x\ty\n1\t2\n", Format.TSV),
        ("a.dat", "", b"x;y\n", Format.CSV),
    ],
)
def test_a_format_is_guessed(name: str, content_type: str, head: bytes, expected: Format) -> None:
    assert guess(name, content_type, head) is expected


def test_binary_rubbish_is_no_format() -> None:
    with pytest.raises(Invalid, match="cannot be guessed"):
        guess("a.bin", "", b"\x00\x01\x02")


def test_compression_is_told_by_the_bytes_and_a_lying_name_is_refused() -> None:
    assert compression_of("a.csv", gzip.compress(b"x")) is Compression.GZIP
    with pytest.raises(Invalid, match="not compressed as its name says"):
        compression_of("a.csv.gz", b"id,name\n")


# Bytes that are the same in every process, as the names of the tests hold them.
@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("mixed.json", b'[{"a": 1}, 2, "x"]', "expected records"),
        ("numbers.json", b"[1, 2, 3]", "expected records"),
        ("cut.json", b'[{"a": 1}, {"a"', "cannot be read"),
        ("cut.parquet", parquet([{"a": 1}])[:-7], "cannot be read"),
        ("text.parquet", b"id,name\n1,a\n", "not a Parquet"),
        ("empty.parquet", b"", "empty"),
        ("cut.csv.gz", gzip.compress(b"id,name\n1,a\n" * 999, mtime=0)[:40], "cannot be read|damaged"),
        ("noise.csv", bytes(range(256)) * 10, "cannot be read"),
        ("empty.csv", b"", "empty"),
        ("empty.json", b"[]", "no row|cannot be read"),
    ],
)
async def test_a_file_that_is_not_what_it_says_is_refused_whole_and_by_name(
    lake: Lake, name: str, content: bytes, match: str
) -> None:
    with pytest.raises(Invalid, match=match) as refused:
        await lake.ingest(lake.write(name, content), name="d")
    assert name in refused.value.message or "`d`" in refused.value.message
    assert await lake.keys() == []
    assert list(lake.scratch.iterdir()) == []


async def test_an_object_over_several_lines_is_a_row(lake: Lake) -> None:
    await lake.ingest(lake.write("one.json", '{"a": 1,\n "b": {"c": [1, 2]}}'))
    assert await lake.rows() == [(1, {"c": [1, 2]})]


async def test_a_key_that_only_the_last_of_many_rows_has_is_a_column(lake: Lake) -> None:
    lines = "\n".join('{"a": 1}' for _ in range(30_000))
    done = await lake.ingest(lake.write("late.ndjson", f'{lines}\n{{"a": 2, "late": "x"}}\n'))
    assert lake.columns(done) == ["a BIGINT", "late VARCHAR"]


async def test_lists_of_one_length_stay_lists_and_fixed_size_lists_keep_their_length(lake: Lake) -> None:
    await lake.ingest(lake.write("v.json", '[{"v": [1, 2.5]}, {"v": [3, 4]}]'), name="json")
    found = await lake.catalog.manifest("json")
    assert found.schema is not None
    assert found.schema.fields[0].type == "DOUBLE[]"
    fixed = pa.table({"v": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2))})
    pq.write_table(fixed, lake.sources / "v.parquet")
    done = await lake.ingest(str(lake.sources / "v.parquet"), name="arrow")
    assert lake.columns(done) == ["v FLOAT[2]"]
    assert await lake.rows("arrow") == [([1.0, 2.0],), ([3.0, 4.0],)]


async def test_long_vectors_fit_into_a_workers_memory(lake: Lake) -> None:
    vectors = [[float(row)] * 4_096 for row in range(3)]
    pq.write_table(
        pa.table({"v": pa.array(vectors, pa.list_(pa.float32(), 4_096))}), lake.sources / "v.parquet"
    )
    done = await lake.ingest(str(lake.sources / "v.parquet"), converting=ProcessConverting)
    assert lake.columns(done) == ["v FLOAT[4096]"]
    assert done.manifest.row_count == 3


async def test_uneven_vectors_are_taken_and_recorded(lake: Lake) -> None:
    lines = '{"v": [1.5, 2]}\n{"v": [1.5, null, 3]}\n{"v": null}\n'
    done = await lake.ingest(lake.write("v.ndjson", lines))
    assert done.manifest.stats == {
        "v": {"null_count": 1, "length_min": 2, "length_max": 3, "element_null_count": 1}
    }


async def test_what_parquet_cannot_hold_is_stored_without_loss(lake: Lake) -> None:
    table = pa.table({"big": pa.array([2**64 - 1], pa.uint64()), "e": pa.array(["a"]).dictionary_encode()})
    pq.write_table(table, lake.sources / "t.parquet")
    done = await lake.ingest(str(lake.sources / "t.parquet"))
    assert lake.columns(done) == ["big UBIGINT", "e VARCHAR"]
    assert await lake.rows() == [(2**64 - 1, "a")]


async def test_wide_rows_get_small_row_groups_and_every_field_an_id(disk_lake: Lake) -> None:
    lake = disk_lake
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([0.5] * (384 * 50_000), pa.float32()), 384)
    pq.write_table(pa.table({"id": range(50_000), "v": vectors}), lake.sources / "wide.parquet")
    done = await lake.ingest(str(lake.sources / "wide.parquet"))
    written = pq.ParquetFile(Path(lake.folder) / "data" / done.manifest.object_keys[0])
    groups = [written.metadata.row_group(n) for n in range(written.metadata.num_row_groups)]
    assert all(group.total_byte_size <= 70 << 20 for group in groups)
    assert max(group.num_rows for group in groups) <= 43_008
    assert written.schema_arrow.field("id").metadata[b"PARQUET:field_id"] == b"0"
    assert groups[0].column(0).compression == "ZSTD"


OPTIONS: dict[str, tuple[str | bytes, dict[str, Any], list[tuple[object, ...]]]] = {
    "delimiter": ("id;name\n1;a\n", {"delimiter": ";"}, [(1, "a")]),
    "header": ("1,a\n", {"header": "false"}, [(1, "a")]),
    "encoding": ("id,name\n1,é\n".encode("latin-1"), {"encoding": "latin-1"}, [(1, "é")]),
    "null": ("id,name\n1,n/a\n", {"null": "n/a"}, [(1, None)]),
    "skip": ("report\nid,name\n1,a\n", {"skip": "1"}, [(1, "a")]),
    "quote": ("id,name\n1,'a,b'\n", {"quote": "'"}, [(1, "a,b")]),
    "types": ("id,name\n007,a\n", {"types": "id:VARCHAR"}, [("007", "a")]),
    "all_text": ("id,name\n007,a\n", {"all_text": "true"}, [("007", "a")]),
    "decimal_separator": ("id;p\n1;2,5\n", {"delimiter": ";", "decimal_separator": ","}, [(1, 2.5)]),
}


@pytest.mark.parametrize("option", OPTIONS)
async def test_a_reader_option_is_heeded(lake: Lake, option: str) -> None:
    content, options, expected = OPTIONS[option]
    await lake.ingest(lake.write("rows.csv", content), options=options)
    assert await lake.rows() == expected


@pytest.mark.parametrize(
    "options",
    [
        {"allow_moving_paths": "true"},
        {"delimiter": ""},
        {"delimiter": 7},
        {"encoding": "ebcdic"},
        {"skip": "-1"},
        {"header": "perhaps"},
        {"types": "BIGINT"},
        {"types": {"a": "((("}},
        {"null": "x" * 999},
    ],
    ids=str,
)
async def test_an_unknown_option_or_a_bad_value_is_refused(lake: Lake, options: dict[str, object]) -> None:
    with pytest.raises(Invalid):
        await lake.ingest(lake.write("rows.csv", "a\n1\n"), options=options)


async def test_an_option_cannot_become_sql(lake: Lake) -> None:
    evil = "x'); COPY (SELECT 1) TO '/tmp/never.csv' --"
    await lake.ingest(lake.write("it's.csv", "a,b\n1,2\n"), options={"null": evil}, name="it's")
    assert await lake.rows("it's") == [(1, 2)]
    assert not Path("/tmp/never.csv").exists()


async def test_numbers_that_json_has_not_are_kept_and_shown_as_null(lake: Lake) -> None:
    path = lake.sources / "nan.parquet"
    pq.write_table(pa.table({"x": pa.array([float("nan"), float("inf"), 1.5])}), path)
    await lake.ingest(str(path))
    done = await lake.ingest(str(path), name="other", dry_run=True)
    assert [row["x"] for row in done.sample] == [None, None, 1.5]
    assert str(await lake.rows()) == "[(1.5,), (inf,), (nan,)]"


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("kind", ["csv", "ndjson"])
async def test_a_compressed_file_that_was_cut_off_is_refused_and_not_taken_for_a_short_one(
    lake: Lake, kind: str, compression: str
) -> None:
    rows = {"csv": "a\n" + "7\n" * 200_000, "ndjson": '{"a": 7}\n' * 200_000}[kind].encode()
    whole = gzip.compress(rows) if compression == "gzip" else pa.compress(rows, "zstd", asbytes=True)
    with pytest.raises(Invalid, match="damaged"):
        await lake.ingest(lake.write(f"rows.{kind}", whole[:-9]))
    assert await lake.keys() == []
    assert (await lake.ingest(lake.write(f"rows.{kind}", whole))).manifest.row_count == 200_000


@pytest.mark.parametrize("kind", ["csv", "ndjson", "parquet"])
async def test_folders_named_as_hive_does_add_and_change_no_column(lake: Lake, kind: str) -> None:
    content = {"csv": b"year,a\n77,1\n", "ndjson": b'{"year": 77, "a": 1}\n'}.get(kind) or parquet(
        [{"year": 77, "a": 1}]
    )
    done = await lake.ingest(lake.write(f"year=2020/month=3/f.{kind}", content))
    assert lake.columns(done) == ["year BIGINT", "a BIGINT"]
    assert await lake.rows() == [(77, 1)]


@pytest.mark.parametrize(
    "name", ["a[1].csv", "a*.csv", "a?.csv", "a{1,2}.csv", "a'b\"c %20;#.csv", "ü💥.csv"]
)
async def test_of_files_whose_names_look_like_patterns_only_the_named_one_is_read(
    lake: Lake, name: str
) -> None:
    for other in ("a1.csv", "ax.csv", "a[1].csv", "a*.csv"):
        lake.write(other, "v\n999\n")
    await lake.ingest(lake.write(name, "v\n1\n"))
    assert await lake.rows() == [(1,)]


async def test_nothing_is_written_beside_a_source(lake: Lake) -> None:
    lake.write("in/bad.ndjson", '{"a": 1}\nbad\n')
    lake.write("in/p.parquet.gz", gzip.compress(parquet([{"a": 2}])))
    folder = lake.sources / "in"
    before = folder.stat().st_mtime_ns
    await lake.ingest(str(folder / "*"))
    assert await lake.rows() == [(1,), (2,)]
    assert folder.stat().st_mtime_ns == before
    assert list(lake.scratch.iterdir()) == []


async def test_a_byte_order_mark_before_ndjson_costs_no_row(lake: Lake) -> None:
    done = await lake.ingest(lake.write("bom.ndjson", b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n'))
    assert (done.rejects, await lake.rows()) == (0, [(1,), (2,)])


async def test_integers_beyond_64_bits_keep_their_digits(lake: Lake) -> None:
    path = lake.write("u64.csv", "id,x\n18446744073709551615,1.5\n1,1e30\n")
    done = await lake.ingest(path)
    assert lake.columns(done) == ["id DECIMAL(38,0)", "x DOUBLE"]
    assert [str(row[0]) for row in await lake.rows()] == ["1", "18446744073709551615"]
    done = await lake.ingest(lake.write("u64b.csv", "id,x\n5,2\n"), mode=Mode.APPEND)
    assert lake.columns(done) == ["id DECIMAL(38,0)", "x DOUBLE"]


async def test_an_empty_key_is_refused_and_not_read_as_nothing(lake: Lake) -> None:
    with pytest.raises(Invalid, match="empty"):
        await lake.ingest(lake.write("key.ndjson", '{"": 1}\n'))
    await lake.ingest(lake.write("c0.ndjson", '{"C0": null, "C1": 1}\n'))
    assert await lake.rows() == [(None, 1)]


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("wide.csv", "a,b\n1," + "x" * 3_000_000 + "\n", "Maximum line size"),
        ("odd.csv", "a,b\r\n1,2\n3,4\r5,6\n", "say `delimiter`"),
    ],
)
async def test_what_is_wrong_with_csv_is_said_in_full(
    lake: Lake, name: str, content: str, match: str
) -> None:
    with pytest.raises(Invalid, match=match):
        await lake.ingest(lake.write(name, content))


@pytest.mark.parametrize("gap", [b"", b" \n"])
@pytest.mark.parametrize("suffix", ["json", "json.gz"])
async def test_a_json_array_behind_a_byte_order_mark_is_read(lake: Lake, gap: bytes, suffix: str) -> None:
    content = codecs.BOM_UTF8 + gap + b'[{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]'
    data = gzip.compress(content) if suffix.endswith("gz") else content
    done = await lake.ingest(lake.write(f"a.{suffix}", data))
    assert lake.columns(done) == ["id BIGINT", "name VARCHAR"]
    assert await lake.rows() == [(1, "a"), (2, "b")]
