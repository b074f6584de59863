"""Rows that cannot be read: each is told with file, line and reason, and none is dropped without a word."""

import gzip
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.lake import Lake
from lakehouse.core.errors import Invalid
from lakehouse.core.schema import SchemaPolicy
from lakehouse.ingest import IngestResult, Mode, Reject, lines, read_rejects

MESSY = b"id,name,price\n1,a,2.5\n2,b\n3,c,3.5,extra\n4,\xff\xfe,4.5\n5,d,5.5\n"
LINES = '{"a": 1, "b": "x"}\n{"a": 2\n[3]\n\n"text"\n{"a": 4, "b": "y"}\n'


async def kept(lake: Lake, result: IngestResult) -> list[Reject]:
    """What the rejects object of a version holds."""
    assert result.manifest.rejects is not None
    path = lake.folder / "rejects.parquet"
    await lake.store.download(result.manifest.rejects.key, path)
    rows = read_rejects(path, 0, 1_000)
    path.unlink()
    assert len(rows) == result.manifest.rejects.count
    return rows


async def test_ragged_and_badly_encoded_lines_are_rejected_with_their_numbers(lake: Lake) -> None:
    path = lake.write("messy.csv", MESSY)
    done = await lake.ingest(path)
    assert await lake.rows() == [(1, "a", 2.5), (5, "d", 5.5)]
    rows = await kept(lake, done)
    assert [(row.line, row.error.partition(":")[0]) for row in rows] == [
        (3, "missing columns"),
        (4, "too many columns"),
        (5, "invalid encoding"),
    ]
    assert {row.source for row in rows} == {f"file://{path}"}
    assert rows[1].text == "3,c,3.5,extra"
    assert (done.rejects, list(done.rejected)) == (3, rows)
    assert done.manifest.sources[0].rejects == 3


async def test_a_value_that_does_not_fit_the_datasets_type_rejects_its_row(lake: Lake) -> None:
    await lake.ingest(lake.write("1.csv", "id,day\n1,2026-01-01\n"))
    path = lake.write("2.csv", "id,day\n2,2026-01-02\nthree,2026-01-03\n4,2026-01-04\n")
    done = await lake.ingest(path, mode=Mode.APPEND)
    assert len(await lake.rows()) == 3
    [row] = await kept(lake, done)
    assert (row.line, row.column) == (3, "id")
    assert row.error.startswith("cast:")


async def test_lines_that_are_no_json_objects_are_rejected(lake: Lake) -> None:
    done = await lake.ingest(lake.write("messy.ndjson", LINES))
    assert await lake.rows() == [(1, "x"), (4, "y")]
    assert [(row.line, row.text) for row in await kept(lake, done)] == [
        (2, '{"a": 2'),
        (3, "[3]"),
        (5, '"text"'),
    ]


async def test_a_json_line_that_does_not_fit_the_datasets_type_is_rejected(lake: Lake) -> None:
    await lake.ingest(lake.write("1.ndjson", '{"a": 1}\n{"a": 2}\n'))
    lines = "".join(f'{{"a": {n}}}\n' for n in range(5_000))
    path = lake.write("2.ndjson", f'{lines}{{"a": "many"}}\n{{"a": 1, "a": 2}}\n{{"a": 7}}\n')
    done = await lake.ingest(path, mode=Mode.APPEND)
    assert done.manifest.row_count == 2 + 5_000 + 1
    assert [row.line for row in await kept(lake, done)] == [5_001, 5_002]


async def test_when_every_row_is_rejected_nothing_is_published(lake: Lake) -> None:
    before = await lake.ingest(lake.write("good.csv", "id,name\n1,a\n"))
    keys = await lake.keys()
    path = lake.write("bad.csv", "id,name\n" + "1\n" * 5)
    with pytest.raises(Invalid, match=r"(?s)every row was rejected.*bad\.csv.*line=`2`"):
        await lake.ingest(path, options={"delimiter": ",", "header": True})
    assert await lake.keys() == keys
    assert (await lake.catalog.manifest("d")) == before.manifest


async def test_max_rejects_is_a_bound_that_holds_and_one_that_breaks(lake: Lake) -> None:
    path = lake.write("messy.csv", MESSY)
    with pytest.raises(Invalid):
        await lake.ingest(path, max_rejects=2)
    assert await lake.keys() == []
    assert (await lake.ingest(path, max_rejects=3)).published
    lines = lake.write("messy.ndjson", LINES)
    with pytest.raises(Invalid):
        await lake.ingest(lines, name="n", max_rejects=2)
    assert (await lake.ingest(lines, name="n", max_rejects=3)).published


async def test_rejects_of_sources_that_stay_stay(lake: Lake) -> None:
    lake.write("a.csv", "id,name\n1,a\n2\n")
    lake.write("b.csv", "id,name\n3,c\n4\n")
    await lake.ingest(f"{lake.sources}/*.csv")
    lake.write("b.csv", "id,name\n3,c\n5\n6\n")
    done = await lake.ingest(f"{lake.sources}/*.csv")
    assert [(row.source[-5:], row.text) for row in await kept(lake, done)] == [
        ("a.csv", "2"),
        ("b.csv", "5"),
        ("b.csv", "6"),
    ]
    (lake.sources / "b.csv").unlink()
    done = await lake.ingest(f"{lake.sources}/*.csv")
    assert [row.text for row in await kept(lake, done)] == ["2"]
    assert (done.rejects, done.manifest.sources[0].rejects) == (0, 1)


async def test_a_fraction_among_integers_is_never_rounded(lake: Lake) -> None:
    ints = "".join(f"{n}\n" for n in range(30_000))  # beyond what types are inferred from
    done = await lake.ingest(lake.write("late.csv", f"n\n{ints}2.5\n"))
    assert lake.columns(done) == ["n DOUBLE"]
    assert (2.5,) in await lake.rows()


async def test_integers_beyond_a_doubles_precision_come_through_exactly(lake: Lake) -> None:
    big = 2**53 + 1
    ints = "".join(f"{n}\n" for n in range(30_000))
    done = await lake.ingest(lake.write("big.csv", f"n\n{ints}{big}\nx\n"))
    assert lake.columns(done) == ["n BIGINT"]
    assert (big,) in await lake.rows()
    assert done.rejects == 1


async def test_a_fraction_in_an_integer_column_of_the_dataset_is_a_conflict(lake: Lake) -> None:
    await lake.ingest(lake.write("a.csv", "n\n1\n"))
    with pytest.raises(Exception, match="n BIGINT → DOUBLE"):
        await lake.ingest(lake.write("b.csv", "n\n2.5\n"), policy=SchemaPolicy.ADD_ONLY)
    assert (await lake.catalog.manifest("d")).version == 1


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
async def test_line_numbers_count_lines_also_after_texts_that_hold_some(
    lake: Lake, packed: bool, end: str
) -> None:
    written = ["x,y", *(f'{n},"one{end}two"' for n in range(50)), "7", "7,8,9", '5,"a{end}b"', "6"]
    text = end.join(written).replace("{end}", end).encode() + end.encode()
    done = await lake.ingest(lake.write("m.csv", gzip.compress(text) if packed else text))
    assert [row.line for row in done.rejected] == [102, 103, 106]
    assert done.manifest.row_count == 51


@given(
    pieces=st.lists(st.sampled_from([b"a", b"END", b"bb"]), max_size=40),
    chunk=st.integers(1, 7),
    end=st.sampled_from([b"\n", b"\r"]),
)
def test_the_line_of_a_byte_is_what_counting_says(pieces: list[bytes], chunk: int, end: bytes) -> None:
    data = b"".join(pieces).replace(b"END", end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "CHUNK_BYTES", chunk)
        found = lines.numbers_at(io.BytesIO(data), list(range(len(data))))
    assert found == [data[: at + 1].count(end) + 1 for at in range(len(data))]
