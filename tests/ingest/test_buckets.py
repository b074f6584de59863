"""Sources in buckets: found by key or pattern, fetched once, told apart by their ETag."""

import itertools
import os

import pytest

from ingest.lake import Lake
from lakehouse import ingest, settings
from lakehouse.core.errors import NotFound, Unavailable
from lakehouse.ingest import IngestSpec, Source
from lakehouse.ingest.sources import _as_regex
from lakehouse.store.base import ObjectInfo, ObjectStore
from lakehouse.store.memory import MemoryStore
from minio_server import MinioServer

NUMBERS = itertools.count()


@pytest.fixture
def raw(lake: Lake) -> MemoryStore:
    """The bucket `raw`, whose contents outlive a run."""
    bucket = MemoryStore(exclusive=False)

    async def opened(name: str) -> ObjectStore:
        assert name == "raw"
        return bucket.sibling()

    lake.open_bucket = opened
    return bucket


async def test_objects_are_found_by_pattern_and_read_once(lake: Lake, raw: MemoryStore) -> None:
    for key in ("in/a.csv", "in/b.csv", "in/deep/c.csv", "in/d.txt", "other.csv"):
        await raw.put(key, f"id\n{len(key)}\n".encode())
    first = await lake.ingest("s3://raw/in/*.csv")
    assert [entry.uri for entry in first.manifest.sources] == ["s3://raw/in/a.csv", "s3://raw/in/b.csv"]
    assert not (await lake.ingest("s3://raw/in/*.csv")).published
    await raw.put("in/b.csv", b"id\n77\n")
    second = await lake.ingest("s3://raw/in/*.csv")
    assert second.files_read == 1
    assert await lake.rows() == [(77,), (8,)]
    every = await lake.ingest("s3://raw/**/*.csv", name="every")
    assert every.manifest.row_count == 4
    assert list(lake.scratch.iterdir()) == []


@pytest.mark.parametrize("uri", ["s3://raw/none.csv", "s3://raw/none*.csv"])
async def test_an_object_that_is_not_there_is_refused_by_its_uri(
    lake: Lake, raw: MemoryStore, uri: str
) -> None:
    with pytest.raises(NotFound) as refused:
        await lake.ingest(uri)
    assert f"uri=`{uri}`" in refused.value.message


async def test_an_object_that_changes_before_it_is_fetched_is_told(lake: Lake, raw: MemoryStore) -> None:
    await raw.put("a.csv", b"id\n1\n")

    class Moving(MemoryStore):
        async def head(self, key: str) -> ObjectInfo:
            return ObjectInfo(key, 5, "old")

        async def download(self, key: str, path: "os.PathLike[str]") -> ObjectInfo:
            return await raw.download(key, path)

    async def opened(name: str) -> ObjectStore:
        return Moving()

    lake.open_bucket = opened
    with pytest.raises(Unavailable, match=r"changed while it was read.*s3://raw/a\.csv"):
        await lake.ingest("s3://raw/a.csv")
    assert await lake.keys() == []


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("a/*.csv", ["a/x.csv", "a/.csv"], ["a/b/x.csv", "a/x.csv.gz", "b/x.csv"]),
        ("a/**/x.csv", ["a/x.csv", "a/b/x.csv", "a/b/c/x.csv"], ["ax.csv", "a/b/y.csv"]),
        ("a/**", ["a/x", "a/b/x"], ["b/x"]),
        ("x[0-9]?.csv", ["x1a.csv"], ["xa1.csv", "x1/.csv"]),
        ("x[!0-9].csv", ["xa.csv"], ["x1.csv"]),
        ("x[.csv", ["x[.csv"], ["x.csv"]),
        ("a+b(c).{csv}", ["a+b(c).{csv}"], ["aab(c).{csv}"]),
    ],
)
def test_patterns_mean_what_they_mean_in_a_shell(pattern: str, matching: list[str], other: list[str]) -> None:
    import re

    regex = re.compile(_as_regex(pattern))
    assert all(regex.fullmatch(key) for key in matching)
    assert not any(regex.fullmatch(key) for key in other)


@pytest.fixture
def minio_lake(lake: Lake, minio: MinioServer, monkeypatch: pytest.MonkeyPatch) -> tuple[Lake, str]:
    for name, value in minio.environment().items():
        monkeypatch.setenv(name, value)
    return lake, f"ingest/{next(NUMBERS)}"


@pytest.mark.minio
async def test_sources_in_a_real_bucket_are_read_with_the_settings_of_the_process(
    minio_lake: tuple[Lake, str], minio: MinioServer
) -> None:
    lake, prefix = minio_lake
    client = minio.client()
    for number in range(3):
        client.put_object(Bucket=minio.bucket, Key=f"{prefix}/{number}.csv", Body=f"id\n{number}\n".encode())
    spec = IngestSpec("d", (Source(f"s3://{minio.bucket}/{prefix}/*.csv"),))
    configured = settings.load(s3_endpoint=minio.endpoint)
    for published in (True, False):
        done = await ingest.run(
            spec, lake.catalog, lake.store, lake.runtime, configured, scratch=lake.scratch
        )
        assert done.published is published
    assert await lake.rows() == [(0,), (1,), (2,)]
