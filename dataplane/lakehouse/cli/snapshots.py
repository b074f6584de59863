"""`lakehouse snapshot`: LHV1 files of every version, looked at, checked, written and brought in.

Files are mapped, not read into memory.  Export and import work through a server, or with `--data` on a
directory or bucket that no server holds.  What it does not do: know the format; `lakehouse.core.lhv1` does.
"""

import asyncio
import contextlib
import enum
import mmap
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lakehouse.cli.output import (
    ApiKey,
    Data,
    Format,
    Output,
    Url,
    cell,
    connected,
    foreign,
    note,
    print_json,
    print_table,
    written_beside,
)
from lakehouse.core.errors import Conflict, Corrupt, Invalid, LakehouseError

if TYPE_CHECKING:
    from lakehouse.client import Client
    from lakehouse.core.types import IndexParams, Vectors
    from lakehouse.indexes import Indexes

app = typer.Typer(help="Look at, check, export and import LHV1 snapshot files.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="An LHV1 file.", metavar="FILE.lhv1")]
IMPORT_ROWS = 1_000
"""Rows per request of an import through a server."""


class FileVersion(enum.StrEnum):
    """What an export writes."""

    OLD = "2"
    OURS = "3"


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[memoryview]:
    """The file's bytes, unread until they are used."""
    with foreign("cannot read the snapshot", path), path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise Invalid(f"the file is empty. path=`{path}`")
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    yield memoryview(mapping)  # the garbage collector unmaps it when the last array over it is gone


@app.command("inspect")
def inspect(file: File, output: Output = Format.TABLE) -> None:
    """Show what a file holds: parameters, items, log position, sections, and whether it is whole."""
    found = _inspected(file)
    if output is Format.JSON:
        print_json(found)
        return
    sections = found.pop("sections", [])
    flat: dict[str, Any] = {"file": str(file)}
    for name, value in found.items():
        flat |= value if isinstance(value, dict) else {name: value}
    print_table([{"": name, " ": cell(value)} for name, value in flat.items()])
    if isinstance(sections, list) and sections:
        print_table([_short_digest(row) for row in sections], title="sections")


def _short_digest(section: dict[str, Any]) -> dict[str, Any]:
    return section | {key: value[:16] + "…" for key, value in section.items() if key == "sha256"}


@app.command("verify")
def verify(file: File, output: Output = Format.TABLE) -> None:
    """Check every byte; exit code 1 if the file is damaged."""
    found = _inspected(file)
    if output is Format.JSON:
        print_json({"file": str(file), "ok": found["error"] is None, "error": found["error"]})
    elif found["error"] is None:
        sealed = (
            "every byte is under a checksum that matches"
            if found["version"] == 3
            else ("it reads whole, but this version has no checksums")
        )
        note(f"[green]ok[/] version {found['version']}, {found['items']:,} items: {sealed}")
    if found["error"] is not None:
        raise Corrupt(f"the file is damaged: {found['error']}. path=`{file}`")


def _inspected(file: Path) -> dict[str, Any]:
    from lakehouse.core import lhv1

    with mapped(file) as data:
        return dict(lhv1.inspect(data))


@app.command("export")
def export(
    index: Annotated[str, typer.Argument(help="The index.", metavar="INDEX")],
    out: Annotated[Path, typer.Option("--out", "-f", help="The file to write; it must not exist.")],
    version: Annotated[
        FileVersion, typer.Option(help="2: for the old Go system; 3: ours, checksummed.")
    ] = FileVersion.OURS,
    data: Data = None,
    url: Url = None,
    api_key: ApiKey = None,
    output: Output = Format.TABLE,
) -> None:
    """Write an index to one LHV1 file."""
    if out.exists():
        raise Conflict(f"the file exists; name another, or remove it. path=`{out}`")
    with written_beside(out) as partial:
        if data is not None:
            asyncio.run(_export_offline(index, partial, int(version.value), data))
        else:
            _export_online(index, partial, int(version.value), url, api_key)
        found = _inspected(partial)
    shown = {"file": str(out), "bytes": found["bytes"], "version": found["version"], "items": found["items"]}
    if output is Format.JSON:
        print_json(shown)
    else:
        note(f"wrote {out}: version {version.value}, {found['items']:,} items, {found['bytes']:,} bytes")


async def _export_offline(index: str, path: Path, version: int, data: str) -> None:
    async with _indexes(data) as indexes:
        collection = await indexes.open(index)
        await collection.export(path, version)


@contextlib.asynccontextmanager
async def _indexes(data: str) -> AsyncIterator["Indexes"]:
    """The engine on a store that no server holds.  Raises `Conflict` when one does."""
    from lakehouse import settings
    from lakehouse.cli.stores import opened
    from lakehouse.indexes import Indexes

    async with opened(settings.load(data=data), locks=("vectors",)) as (store, runtime):
        indexes = Indexes(store, runtime)
        try:
            yield indexes
        finally:
            await indexes.close()


def _export_online(index: str, path: Path, version: int, url: str | None, api_key: str | None) -> None:

    with connected(url, api_key) as lake, tempfile.TemporaryDirectory() as folder:
        files = _downloaded(lake, index, Path(folder))
        if version == 3:
            _copy_only(files, path)
            return
        contents = [read_items(file) for file in files]
    _write_v2(path, contents)


def _downloaded(lake: "Client", index: str, folder: Path) -> list[Path]:
    """A fresh snapshot of every shard."""
    files = []
    for entry in lake.snapshot(index)["files"]:
        path = folder / f"{entry['shard']}.lhv1"
        lake.storage_download(entry["key"], path)
        files.append(path)
    return files


def _copy_only(files: Sequence[Path], path: Path) -> None:
    import shutil

    from lakehouse.core import lhv1

    if len(files) != 1:
        raise Invalid(f"an index of several shards has no one version 3 file. shards=`{len(files)}`")
    with mapped(files[0]) as data:
        lhv1.read_v3(data)
    shutil.copyfile(files[0], path)


@dataclass(frozen=True, slots=True)
class Content:
    """Everything a file holds that another version can hold too."""

    params: "IndexParams"
    ids: list[str]
    vectors: "Vectors"
    metadata: list[bytes]


def read_items(path: Path) -> Content:
    """All items of an LHV1 file of any version.  Raises `Corrupt`, `Invalid`."""
    import numpy as np

    from lakehouse.core import lhv1
    from lakehouse.index.settings import IndexSettings
    from lakehouse.index.shard_index import ShardIndex
    from lakehouse.snapshots import WINDOW_SECTION

    with mapped(path) as data:
        if lhv1.version_of(data) != 3:
            old = lhv1.read_legacy(data)
            return Content(old.params, list(old.ids), old.vectors, list(old.metadata))
        snapshot = lhv1.read_v3(data)
        sections = [section for section in snapshot.sections if section.kind != WINDOW_SECTION]
        index = ShardIndex.restore(snapshot.params, IndexSettings(), None, sections)
        ids: list[str] = []
        metadata: list[bytes] = []
        vectors = [np.empty((0, snapshot.params.dimension), dtype=np.float32)]
        for chunk in index.view().items():
            ids += chunk.ids
            metadata += chunk.metadata
            vectors.append(chunk.vectors)
        return Content(snapshot.params, ids, np.concatenate(vectors), metadata)


def _write_v2(path: Path, contents: Sequence[Content]) -> None:
    import numpy as np

    from lakehouse.legacy_export import write_items

    ids = [item_id for content in contents for item_id in content.ids]
    metadata = [value for content in contents for value in content.metadata]
    vectors = np.concatenate([content.vectors for content in contents])
    with path.open("wb") as out:
        write_items(out, contents[0].params, ids, vectors, metadata, threads=os.cpu_count() or 1)


@app.command("import")
def import_(
    file: File,
    name: Annotated[
        str | None, typer.Option(help="The new index's name; default: the one in the file.")
    ] = None,
    data: Data = None,
    url: Url = None,
    api_key: ApiKey = None,
    output: Output = Format.TABLE,
) -> None:
    """Make a new index from a file of any LHV1 version; never into one that exists."""
    content = read_items(file)
    index = name or content.params.name
    if data is not None:
        length = asyncio.run(_import_offline(file, index, data))
    else:
        length = _import_online(content, index, url, api_key)
    if output is Format.JSON:
        print_json({"index": index, "length": length})
    else:
        note(f"made index [bold]{index}[/] with {length:,} items")


async def _import_offline(file: Path, index: str, data: str) -> int:
    async with _indexes(data) as indexes:
        return (await indexes.import_snapshot(index, file)).length


def _import_online(content: Content, index: str, url: str | None, api_key: str | None) -> int:
    """Item by item, because a server takes no snapshot that others could have made for it."""
    from lakehouse.cli.loading import progress_bar

    params, total = content.params, len(content.ids)
    with connected(url, api_key) as lake, progress_bar(total, 0) as tick:
        lake.create(index, params.dimension, m=params.m, ef_search=params.ef_search, distance=params.distance)
        for start in range(0, total, IMPORT_ROWS):
            end = min(total, start + IMPORT_ROWS)
            metadata = [value or None for value in content.metadata[start:end]]
            try:
                lake.add(index, content.ids[start:end], content.vectors[start:end], metadata)
            except LakehouseError:
                lake.drop(index)  # no half index is left behind
                raise
            tick(end)
        return lake.index(index).length
