"""The content of a life before it begins: filled shard by shard, its graphs built, put as verified snapshots.

It stands at position 0 under a fresh uuid that no record names yet, so until the record is created nobody sees it, and
what fails leaves files that mean nothing.  What this module does not do: records (`lakehouse.indexes`).
"""

import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

import numpy as np

from lakehouse import background
from lakehouse.core import lhv1, names
from lakehouse.core.entry import FIRST_ENTRY_VERSION, NO_DIGEST
from lakehouse.core.errors import Corrupt, Invalid, NotFound
from lakehouse.core.lhv1 import Covered
from lakehouse.core.types import (
    ID_BYTES_MAX,
    METADATA_BYTES_MAX,
    TINY_SQUARED_NORM,
    Batch,
    Distance,
    IndexParams,
    check_vectors,
)
from lakehouse.engine_settings import EngineSettings
from lakehouse.index.shard_index import ShardIndex
from lakehouse.runtime import Runtime
from lakehouse.snapshots import Image, ShardSnapshots, fetched
from lakehouse.store.base import ObjectStore


@dataclass(frozen=True, slots=True)
class Seed:
    """The content one shard begins with."""

    index: ShardIndex
    operations: int
    """What its item versions count up to; those of later writes count on."""
    window: bytes = b""
    """The requests that it has seen, as a snapshot holds them."""


@dataclass(frozen=True, slots=True)
class Found:
    """What an LHV1 file holds."""

    seed: Seed
    incarnation: UUID | None
    """The life it is a snapshot of; None in files of the old system."""
    shard: int

    @property
    def params(self) -> IndexParams:
        return self.seed.index.params


class Filling:
    """Shards of an index to be, filled in the order in which rows come."""

    def __init__(
        self,
        runtime: Runtime,
        settings: EngineSettings,
        params: IndexParams,
        shards: int,
        *,
        last_wins: bool = False,
        trusted: bool = False,
        only: int | None = None,
    ) -> None:
        """`last_wins`: of an id given twice the last is kept.  `trusted`: the vectors were checked before.  `only`: the
        one shard that is filled; rows of others are passed over."""
        self.params = params
        self.rows = 0
        """Rows taken so far; an id that came twice counts twice."""
        self._runtime = runtime
        self._settings = settings
        self._last_wins = last_wins
        self._trusted = trusted
        self._only = only
        self._indexes = [ShardIndex(params, settings.index, settings.scratch) for _ in range(shards)]
        self._operations = [0] * shards

    async def add(self, batch: Batch) -> None:
        """Take a batch, in a worker; one at a time.  Raises `Invalid` naming the row, counted over all batches."""
        await self._runtime.run_cpu(self._add, batch)

    def _add(self, batch: Batch) -> None:
        if not self._trusted:
            _check_rows(batch, self.params, self.rows)
        if not self._last_wins:
            self._refuse_duplicates(batch)
        for number, rows in self._rows_by_shard(batch.ids).items():
            if not rows:
                continue
            part = _picked(batch, rows)
            self._indexes[number].upsert(part, self._operations[number] + 1)
            self._operations[number] += len(part)
        self.rows += len(batch)

    def _refuse_duplicates(self, batch: Batch) -> None:
        seen: set[str] = set()
        for j, item_id in enumerate(batch.ids):
            shard = self._shard_of(item_id)
            if self._only not in (None, shard):
                continue
            known = self._indexes[shard].version(item_id) is not None
            if known or item_id in seen:
                raise Invalid(f"row {self.rows + j}: an id occurs twice in the source. id=`{item_id}`")
            seen.add(item_id)

    def _rows_by_shard(self, ids: Sequence[str]) -> dict[int, list[int]]:
        """The rows of each shard, of an id given twice the last."""
        last = {item_id: j for j, item_id in enumerate(ids)}
        rows: dict[int, list[int]] = {}
        for item_id, j in last.items():
            rows.setdefault(self._shard_of(item_id), []).append(j)
        return rows if self._only is None else {self._only: rows.get(self._only, [])}

    def _shard_of(self, item_id: str) -> int:
        return names.shard_of(item_id, len(self._indexes)) if len(self._indexes) > 1 else 0

    async def settled(self, only: int | None = None) -> list[Seed]:
        """What was taken, with its graphs built; it is handed over, and nothing may be added any more."""
        indexes, self._indexes = self._indexes, []
        for index in indexes if only is None else [indexes[only]]:
            await background.settle(index, self._runtime, self._settings.build_threads)
        return [Seed(index, count) for index, count in zip(indexes, self._operations, strict=True)]


def _picked(batch: Batch, rows: Sequence[int]) -> Batch:
    if len(rows) == len(batch):
        return Batch(batch.ids, np.ascontiguousarray(batch.vectors, np.float32), batch.metadata)
    return Batch(
        tuple(batch.ids[j] for j in rows),
        np.ascontiguousarray(batch.vectors[rows], np.float32),
        tuple(batch.metadata[j] for j in rows),
    )


def _check_rows(batch: Batch, params: IndexParams, first: int) -> None:
    """Refuse what an index may not hold.  Raises `Invalid` naming the row and its id."""
    vectors = batch.vectors
    if vectors.ndim != 2 or vectors.shape != (len(batch.ids), params.dimension):
        raise Invalid(
            f"vectors must have {params.dimension} dimensions each, as index {params.name} has. "
            f"rows=`{first}–{first + len(batch.ids) - 1}` shape=`{tuple(vectors.shape)}`"
        )
    for j, (item_id, metadata) in enumerate(zip(batch.ids, batch.metadata, strict=True)):
        if not item_id:
            raise Invalid(f"row {first + j}: the id is empty")
        if len(item_id) > ID_BYTES_MAX // 4 and len(item_id.encode()) > ID_BYTES_MAX:
            raise Invalid(f"row {first + j}: the id is longer than {ID_BYTES_MAX} bytes")
        if metadata is not None and len(metadata) > METADATA_BYTES_MAX:
            raise Invalid(
                f"row {first + j}: metadata is larger than {METADATA_BYTES_MAX} bytes. id=`{item_id}`"
            )
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    tiny = TINY_SQUARED_NORM if params.distance is Distance.COSINE else 0.0
    for j in np.flatnonzero(~(np.isfinite(squares) & (squares >= tiny)))[:1].tolist():
        shown = batch.ids[j].replace("{", "{{").replace("}", "}}")
        check_vectors(vectors[j : j + 1], params.distance, f"row {first + j}: the vector of id `{shown}`")


# ---------------------------------------------------------------- from files


async def read(
    store: ObjectStore, runtime: Runtime, settings: EngineSettings, name: str, file: str | Path
) -> Found:
    """What an LHV1 file of any version holds: a `str` is a key in the store, a `Path` a local file.

    Raises `NotFound`, `Corrupt`; `Invalid` for an old file with vectors that are none.
    """
    if isinstance(file, str):
        data = await fetched(store, runtime, settings.scratch, file)
    else:
        data = await runtime.run_io(_mapped, file)
    try:
        return await runtime.run_cpu(found_in, name, data, settings)
    except Corrupt as error:
        raise Corrupt(f"{error.message} file=`{file}`") from error


def _mapped(path: Path) -> memoryview:
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    except ValueError:  # an empty file cannot be mapped
        return memoryview(b"")
    except OSError as error:
        raise NotFound(f"no such file, or it cannot be read. path=`{path}`") from error


def found_in(name: str, data: memoryview, settings: EngineSettings) -> Found:
    """The index in an LHV1 file of any version, under a new name.  Raises `Corrupt`, `Invalid`."""
    if lhv1.version_of(data) == 3:
        snapshot = lhv1.read_v3(data)
        sections = [section for section in snapshot.sections if section.kind != "idempotency"]
        params = replace(snapshot.params, name=name)
        index = ShardIndex.restore(params, settings.index, settings.scratch, sections)
        covered = snapshot.covered
        return Found(Seed(index, covered.operations), covered.incarnation, covered.shard)
    legacy = lhv1.read_legacy(data)
    index = ShardIndex(replace(legacy.params, name=name), settings.index, settings.scratch)
    if not np.isfinite(legacy.vectors).all():
        row = int(np.flatnonzero(~np.isfinite(legacy.vectors).all(axis=1))[0])
        raise Invalid(
            f"an item of the old file holds a NaN or an infinity: remove it first. id=`{legacy.ids[row]}`"
        )
    if len(legacy.ids):
        index.upsert(Batch(legacy.ids, legacy.vectors, legacy.metadata), 1)
    return Found(Seed(index, len(legacy.ids)), None, 0)


def in_order(found: Sequence[Found]) -> list[Found]:
    """The files of one index by shard.  Raises `Invalid` when they are not all its shards, each once."""
    ordered = sorted(found, key=lambda file: file.shard)
    if [file.shard for file in ordered] != list(range(len(ordered))):
        shards = ", ".join(str(file.shard) for file in ordered)
        raise Invalid(f"these files are not the shards 0 to n of one index, each once. shards=`{shards}`")
    if len({file.incarnation for file in ordered}) > 1:
        raise Invalid("these files are shards of different indexes, or of different lives of one")
    if len({(file.params.dimension, file.params.distance) for file in ordered}) > 1:
        raise Invalid("these files differ in dimension or distance")
    return ordered


def fits(found: Sequence[Found], shards: int, params: IndexParams) -> bool:
    """Whether files can be used as they are: one per shard, with graphs as `params` asks."""
    asked = (params.m, params.ef_construction)
    return len(found) == shards and all(
        (file.params.m, file.params.ef_construction) == asked for file in found
    )


async def kept(
    runtime: Runtime, settings: EngineSettings, found: Sequence[Found], params: IndexParams
) -> list[Seed]:
    """Files as seeds, one per shard, with graphs for what has none yet."""
    for file in found:
        file.seed.index.with_params(params)
        await background.settle(file.seed.index, runtime, settings.build_threads)
    return [file.seed for file in found]


async def redistributed(
    runtime: Runtime, settings: EngineSettings, found: Sequence[Found], params: IndexParams, shards: int
) -> list[Seed]:
    """The items of files over another number of shards, or linked by other parameters."""
    filling = Filling(runtime, settings, params, shards, trusted=True)
    for file in found:
        batches = _batches(file.seed.index)
        while (batch := await runtime.run_cpu(next, batches, None)) is not None:
            await filling.add(batch)
    return await filling.settled()


def _batches(index: ShardIndex) -> Iterator[Batch]:
    for chunk in index.view().items():
        yield Batch(tuple(chunk.ids), chunk.vectors, tuple(chunk.metadata))


def check_same_kind(old: IndexParams, new: IndexParams) -> None:
    """What no rebuild changes.  Raises `Invalid`."""
    if (old.dimension, old.distance) != (new.dimension, new.distance):
        raise Invalid(f"the dimension and distance of an index never change. name=`{new.name}`")


async def rebuilt(
    runtime: Runtime,
    settings: EngineSettings,
    image: Image,
    params: IndexParams,
    progress: Callable[[int], None] | None = None,
) -> Seed:
    """A shard as an image shows it, with its versions and the requests it has seen, linked by other parameters."""
    index = ShardIndex(params, settings.index, settings.scratch)
    chunks = image.view.items()
    while (chunk := await runtime.run_cpu(next, chunks, None)) is not None:
        batch = Batch(tuple(chunk.ids), chunk.vectors, tuple(chunk.metadata))
        await runtime.run_cpu(index.put_back, batch, chunk.versions)
        if progress is not None:
            progress(len(batch))
    await background.settle(index, runtime, settings.build_threads)
    return Seed(index, image.covered.operations, image.window)


# ---------------------------------------------------------------- into the store


async def write(
    store: ObjectStore,
    runtime: Runtime,
    settings: EngineSettings,
    name: str,
    uuid: UUID,
    shard: int,
    seed: Seed,
    writer: UUID | None = None,
) -> None:
    """Put one shard's content as a snapshot at position 0, and read it back.  Raises `Corrupt`, `Unavailable`.

    `writer` tells its file from those of others that put the same content.
    """
    covered = Covered(uuid, shard, 0, 0, NO_DIGEST, seed.operations, FIRST_ENTRY_VERSION)
    index = seed.index
    image = Image(index.params, covered, len(index), index.view(), seed.window)
    _, content = await ShardSnapshots(store, runtime, settings, name, uuid, shard).write(
        image, writer or uuid
    )
    if isinstance(content, Path):
        await runtime.run_io(content.unlink, missing_ok=True)
