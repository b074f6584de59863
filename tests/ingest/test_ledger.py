"""What is read again and what is not, what each mode keeps, and what several files make together."""

from pathlib import Path

import pytest

from ingest.lake import Lake
from lakehouse.core.errors import Conflict, Invalid, LakehouseError, NotFound
from lakehouse.core.manifest import checked_registration
from lakehouse.core.schema import SchemaConflict, SchemaPolicy
from lakehouse.ingest import Mode, Source


async def test_a_second_run_over_unchanged_sources_does_nothing(lake: Lake) -> None:
    lake.write("a.csv", "id\n1\n")
    lake.write("b.csv", "id\n2\n")
    first = await lake.ingest(f"{lake.sources}/*.csv")
    keys = await lake.keys()
    second = await lake.ingest(f"{lake.sources}/*.csv")
    assert (first.published, second.published) == (True, False)
    assert second.manifest == first.manifest
    assert lake.started == 1
    assert await lake.keys() == keys


async def test_only_changed_and_new_files_are_read(lake: Lake) -> None:
    for name in "abc":
        lake.write(f"{name}.csv", f"id\n{ord(name)}\n")
    first = await lake.ingest(f"{lake.sources}/*.csv")
    lake.write("b.csv", "id\n7\n8\n")
    lake.write("d.csv", "id\n9\n")
    second = await lake.ingest(f"{lake.sources}/*.csv")
    assert second.files_read == 2
    assert await lake.rows() == [(7,), (8,), (9,), (97,), (99,)]
    assert await lake.rows(version=1) == [(97,), (98,), (99,)]
    old = {entry.uri[-5:]: entry for entry in first.manifest.sources}
    new = {entry.uri[-5:]: entry for entry in second.manifest.sources}
    assert (new["a.csv"], new["c.csv"]) == (old["a.csv"], old["c.csv"])
    assert second.manifest.row_count == sum(entry.rows or 0 for entry in second.manifest.sources) == 5


async def test_replace_lets_vanished_files_go_and_append_keeps_them(lake: Lake) -> None:
    lake.write("a.csv", "id\n1\n")
    gone = lake.write("b.csv", "id\n2\n")
    for name in ("replaced", "appended"):
        await lake.ingest(f"{lake.sources}/*.csv", name=name)
    Path(gone).unlink()
    lake.write("a.csv", "id\n10\n11\n")
    await lake.ingest(f"{lake.sources}/*.csv", name="replaced")
    await lake.ingest(f"{lake.sources}/*.csv", name="appended", mode=Mode.APPEND)
    assert await lake.rows("replaced") == [(10,), (11,)]
    assert await lake.rows("appended") == [(10,), (11,), (2,)]


async def test_other_reader_options_mean_reading_again(lake: Lake) -> None:
    path = lake.write("a.csv", "id\n007\n")
    await lake.ingest(path)
    done = await lake.ingest(path, options={"types": "id:VARCHAR"}, policy=SchemaPolicy.ANY)
    assert done.published
    assert await lake.rows() == [("007",)]


async def test_files_with_different_columns_make_one_schema(lake: Lake) -> None:
    lake.write("a.csv", "id,price\n1,2\n")
    lake.write("b.csv", "price,id,extra\n2.5,2,x\n")
    lake.write("c.csv", "")
    lake.write("d.csv", "id,price\n")
    done = await lake.ingest(f"{lake.sources}/*.csv", policy=SchemaPolicy.ADD_ONLY)
    assert lake.columns(done) == ["id BIGINT", "price DOUBLE", "extra VARCHAR"]
    assert await lake.rows() == [(1, 2.0, None), (2, 2.5, "x")]
    assert len(done.manifest.sources) == 4


async def test_under_strict_a_file_that_lacks_a_column_is_a_conflict_by_name(lake: Lake) -> None:
    lake.write("a.csv", "id,price\n1,2\n")
    lake.write("b.csv", "id\n2\n")
    with pytest.raises(SchemaConflict, match=r"- price BIGINT.*b\.csv"):
        await lake.ingest(f"{lake.sources}/*.csv")
    assert await lake.keys() == []


async def test_rows_of_unchanged_files_are_brought_into_the_new_schema(lake: Lake) -> None:
    lake.write("a.csv", "id\n1\n")
    await lake.ingest(f"{lake.sources}/*.csv")
    lake.write("b.csv", "id,extra\n2,x\n")
    added = await lake.ingest(f"{lake.sources}/*.csv", policy=SchemaPolicy.ADD_ONLY)
    assert await lake.rows() == [(1, None), (2, "x")]
    assert added.manifest.stats is not None
    assert added.manifest.stats["extra"]["null_count"] == 1
    lake.write("b.csv", "id,extra\n2.5,x\n")
    changed = await lake.ingest(f"{lake.sources}/*.csv", policy=SchemaPolicy.ANY)
    assert [str(change) for change in changed.changes] == ["~ id BIGINT → DOUBLE"]
    assert await lake.rows() == [(1.0, None), (2.5, "x")]
    assert await lake.rows(version=1) == [(1,)]


async def test_a_column_that_vanishes_is_a_conflict_unless_anything_goes(lake: Lake) -> None:
    lake.write("a.csv", "id,old\n1,x\n")
    await lake.ingest(f"{lake.sources}/*.csv")
    lake.write("a.csv", "id\n1\n")
    for policy in (SchemaPolicy.STRICT, SchemaPolicy.ADD_ONLY):
        with pytest.raises(SchemaConflict, match="- old VARCHAR"):
            await lake.ingest(f"{lake.sources}/*.csv", policy=policy)
    done = await lake.ingest(f"{lake.sources}/*.csv", policy=SchemaPolicy.ANY)
    assert lake.columns(done) == ["id BIGINT"]


async def test_what_a_text_column_can_hold_is_no_change(lake: Lake) -> None:
    lake.write("a.csv", "zip,price,day\n0815x,2.5,2026-01-01\n")
    await lake.ingest(f"{lake.sources}/*.csv")
    lake.write("b.csv", "zip,price,day\n00815,3,\n")
    done = await lake.ingest(f"{lake.sources}/*.csv")
    assert done.changes == ()
    assert ("00815", 3.0, None) in await lake.rows()


async def test_a_pinned_fingerprint_is_the_only_schema(lake: Lake) -> None:
    path = lake.write("a.csv", "id\n1\n")
    with pytest.raises(SchemaConflict, match=r"id BIGINT.*pinned=`beef`"):
        await lake.ingest(path, fingerprint="beef")
    fingerprint = (await lake.ingest(path, dry_run=True)).manifest.schema_fingerprint
    assert (await lake.ingest(path, fingerprint=fingerprint)).published
    with pytest.raises(SchemaConflict, match=r"\+ more BIGINT"):
        await lake.ingest(
            lake.write("b.csv", "id,more\n1,2\n"), fingerprint=fingerprint, policy=SchemaPolicy.ANY
        )


async def test_a_dataset_registered_without_a_schema_is_not_guessed_at(lake: Lake) -> None:
    await lake.catalog.register(checked_registration("d", "f", ({"key": "mine.parquet"},), None))
    path = lake.write("a.csv", "id\n1\n")
    for mode in Mode:
        with pytest.raises(Conflict, match="registered without a schema"):
            await lake.ingest(path, mode=mode)
    assert (await lake.ingest(path, policy=SchemaPolicy.ANY)).manifest.version == 2


async def test_an_upload_is_known_by_its_bytes(lake: Lake) -> None:
    def upload(content: str, digest: str) -> Source:
        path = lake.sources / "spooled"
        path.write_text(content)
        return Source(f"upload:{digest}/a.csv", path=path, etag=digest)

    await lake.ingest(upload("id\n1\n", "one"), mode=Mode.APPEND)
    await lake.ingest(upload("id\n2\n", "two"), mode=Mode.APPEND)
    again = await lake.ingest(upload("id\n2\n", "two"), mode=Mode.APPEND)
    assert not again.published
    assert await lake.rows() == [(1,), (2,)]


async def test_globs_take_files_in_order_and_leave_folders_and_hidden_files(lake: Lake) -> None:
    for name in ("b.csv", "a.csv", "deep/er/c.csv", ".hidden.csv"):
        lake.write(name, f"id\n{len(name)}\n")
    (lake.sources / "folder.csv").mkdir()
    done = await lake.ingest(f"file://{lake.sources}/**/*.csv")
    names = [entry.uri.removeprefix(f"file://{lake.sources}/") for entry in done.manifest.sources]
    assert names == ["a.csv", "b.csv", "deep/er/c.csv"]


async def test_a_file_whose_name_looks_like_a_pattern_is_that_file(lake: Lake) -> None:
    path = lake.write("a[1] #?é.csv", "id\n1\n")
    await lake.ingest(path, path)
    [entry] = (await lake.catalog.manifest("d")).sources
    assert entry.uri == (lake.sources / "a[1] #?é.csv").as_uri()
    assert not (await lake.ingest(entry.uri)).published


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("{}/none.csv", NotFound),  # which `Fresh` tells as `SourceUnreachable`
        ("{}/*.none", NotFound),
        ("{}", Invalid),
        ("/dev/null", Invalid),
        ("ftp://x/y", Invalid),
        ("file://host/x", Invalid),
        ("s3://bucket", Invalid),
        ("", Invalid),
        ("upload:x", Invalid),
    ],
)
async def test_a_source_that_is_not_there_or_no_file_is_refused_by_its_uri(
    lake: Lake, uri: str, kind: type[LakehouseError]
) -> None:
    named = uri.format(lake.sources)
    with pytest.raises(kind) as refused:
        await lake.ingest(named)
    assert f"uri=`{named}`" in refused.value.message


async def test_statistics_say_what_the_rows_are(lake: Lake) -> None:
    lake.write("a.csv", "id,name,price,day,flag\n1,a,2.5,2026-01-01,true\n2,,1.5,2026-01-03,true\n")
    lake.write("b.csv", "id,name,price,day,flag\n10,zz,-1,2025-12-31,false\n")
    done = await lake.ingest(f"{lake.sources}/*.csv")
    assert done.manifest.stats == {
        "id": {"null_count": 0, "min": 1, "max": 10, "distinct": 3},
        "name": {"null_count": 1, "min": "a", "max": "zz", "distinct": 2},
        "price": {"null_count": 0, "min": -1.0, "max": 2.5, "distinct": 3},
        "day": {"null_count": 0, "min": "2025-12-31", "max": "2026-01-03", "distinct": 3},
        "flag": {"null_count": 0, "min": False, "max": True, "distinct": 2},
    }
    assert done.manifest.bytes == sum(each["size"] for each in done.manifest.objects)


async def test_nested_values_beside_plain_ones_become_json(lake: Lake) -> None:
    lake.write("a.ndjson", '{"id": 1, "x": {"deep": [1]}}\n')
    lake.write("b.ndjson", '{"id": 2, "x": "text"}\n')
    done = await lake.ingest(f"{lake.sources}/*.ndjson")
    assert lake.columns(done) == ["id BIGINT", "x JSON"]
    assert await lake.rows() == [(1, '{"deep":[1]}'), (2, '"text"')]


async def test_keys_that_differ_in_case_only_are_refused_and_numbered_ones_are_not(lake: Lake) -> None:
    with pytest.raises(Invalid, match=r"differ in case only.*key=`A`"):
        await lake.ingest(lake.write("a.ndjson", '{"a": 1, "A": 2}\n'))
    await lake.ingest(lake.write("b.ndjson", '{"a": 1, "a_1": 2}\n'))
    assert await lake.rows() == [(1, 2)]


async def test_registered_objects_stay_beside_appended_rows(lake: Lake) -> None:
    first = await lake.ingest(lake.write("a.csv", "id\n1\n"))
    mine = ({"key": "mine.parquet"}, {"note": "no key"}, {"note": "nor this"})
    fingerprint = first.manifest.schema_fingerprint
    await lake.catalog.register(checked_registration("d", fingerprint, mine, None))
    done = await lake.ingest(lake.write("b.csv", "id\n2\n"), mode=Mode.APPEND)
    assert done.manifest.objects[:3] == mine
    assert (len(done.manifest.objects), done.manifest.row_count, done.manifest.stats) == (4, None, None)
    with pytest.raises(Conflict, match="cannot be brought into another schema"):
        await lake.ingest(
            lake.write("c.csv", "id,more\n2,3\n"), mode=Mode.APPEND, policy=SchemaPolicy.ADD_ONLY
        )
