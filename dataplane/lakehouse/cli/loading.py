"""From a Parquet file to an index, in bounded memory: a reader, a few requests in flight, a progress bar.

Each batch has an idempotency key made of the run and its first row, so a batch sent twice is added once, and
an interrupted run goes on at the first row that is not known to be safe.
What it does not do: retry (the client does), or convert columns (the server makes JSON of them).
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from lakehouse.client import AsyncClient
from lakehouse.core.errors import Invalid, NotFound
from lakehouse.runtime import SystemRuntime

Tick = Callable[[int], None]
RESERVED = ("id", "vector")
VECTOR_BYTES_MAX = 16 << 20
"""Of one request, so that wide vectors do not pass the server's limit of 64 MiB."""


@dataclass(frozen=True, slots=True)
class Run:
    """One load, and the row it begins at."""

    token: str
    row: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `--resume` was given.  Raises `Invalid`."""
        token, _, row = text.partition("@")
        if not token.isalnum() or not row.isdecimal():
            raise Invalid(f"--resume takes what the interrupted command printed. resume=`{text}`")
        return cls(token, int(row))


@dataclass(frozen=True, slots=True)
class Source:
    """A Parquet file and what to take from it."""

    path: Path
    id_column: str
    vector_column: str
    metadata_columns: tuple[str, ...]
    batch_rows: int
    rows: int
    dimension: int

    @classmethod
    def open(
        cls,
        path: Path,
        id_column: str,
        vector_column: str,
        metadata_columns: Sequence[str] | None,
        batch_rows: int,
    ) -> Self:
        """Look at the file's schema, and at its first vector where that does not give the dimension.

        Raises `Invalid` when a column is missing or cannot be used.
        """
        with _parquet(path) as file:
            schema = file.schema_arrow
            for column in (id_column, vector_column, *(metadata_columns or ())):
                if column not in schema.names:
                    raise Invalid(
                        f"no column `{column}`; the file has {', '.join(schema.names)}. file=`{path}`"
                    )
            others = [name for name in schema.names if name not in (id_column, vector_column)]
            kept = others if metadata_columns is None else list(metadata_columns)
            for column in kept:
                if column in RESERVED:
                    raise Invalid(
                        f"a metadata column cannot be called `{column}`; leave it out. file=`{path}`"
                    )
            dimension = _dimension(file, vector_column)
            widest = max(1, VECTOR_BYTES_MAX // (4 * max(1, dimension)))
            return cls(
                path,
                id_column,
                vector_column,
                tuple(kept),
                min(batch_rows, widest),
                file.metadata.num_rows,
                dimension,
            )

    def batches(self, first_row: int) -> Iterator[tuple[int, int, bytes]]:
        """(first row, rows, body) of each batch from the one that holds `first_row`."""
        columns = [self.id_column, self.vector_column, *self.metadata_columns]
        row = 0
        with _parquet(self.path) as file:
            for batch in file.iter_batches(self.batch_rows, columns=columns):
                if row + len(batch) > first_row:
                    yield row, len(batch), _body(batch, self)
                row += len(batch)


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except pa.ArrowInvalid as error:
        reason = str(error).rstrip(".")
        raise Invalid(f"this is not a Parquet file, or it is damaged: {reason}. file=`{path}`") from error


def _dimension(file: pq.ParquetFile, column: str) -> int:
    kind = file.schema_arrow.field(column).type
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise Invalid(f"the vector column holds no lists. type=`{kind}`")
    for batch in file.iter_batches(1, columns=[column]):
        return len(batch.column(0)[0])
    return 0


def _body(batch: pa.RecordBatch, source: Source) -> bytes:
    """An Arrow IPC stream of id, vector and the metadata columns as they are."""
    arrays = {
        "id": _ids(batch.column(source.id_column)),
        "vector": batch.column(source.vector_column),
        **{name: _plain(batch.column(name)) for name in source.metadata_columns},
    }
    plain = pa.record_batch(arrays)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, plain.schema) as writer:
        writer.write_batch(plain)
    return bytes(sink.getvalue())


def _ids(column: pa.Array) -> pa.Array:
    return _plain(column).cast(pa.string())


def _plain(column: pa.Array) -> pa.Array:
    """Without dictionary encoding, which the server refuses because a few bytes of it can stand for many."""
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


@dataclass(slots=True)
class Job:
    """A load under way: `done` rows from the start of the file are acknowledged, all of them."""

    index: str
    source: Source
    run: Run
    create: bool
    in_flight: int
    done: int = 0
    length: int = 0
    _ahead: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.done = self.run.row

    @property
    def resume_token(self) -> str:
        """What `--resume` takes."""
        return f"{self.run.token}@{self.done}"

    def key(self, row: int) -> str:
        """Of the batch that begins at `row`; another batch size makes other batches, so it is part of it."""
        return f"{self.run.token}-{self.source.batch_rows}-{row}"

    def acknowledged(self, row: int, rows: int, length: int) -> None:
        """Batches end in any order; `done` moves on only without gaps."""
        self.length = max(self.length, length)
        self._ahead[row] = rows
        start = next((at for at in self._ahead if at <= self.done < at + self._ahead[at]), None)
        while start is not None:
            self.done = start + self._ahead.pop(start)
            start = self.done if self.done in self._ahead else None


async def load(job: Job, url: str | None, api_key: str | None, tick: Tick) -> dict[str, Any]:
    """Send every batch; returns what happened.  On an error nothing acknowledged is lost: see `job.done`."""
    runtime = SystemRuntime()
    first = job.done
    try:
        async with AsyncClient(url, api_key=api_key, runtime=runtime) as lake:
            await _prepare(job, lake)
            started = runtime.monotonic()
            await _send_all(job, lake, runtime, tick)
            seconds = runtime.monotonic() - started
            length = (await lake.index(job.index)).length
    finally:
        runtime.close()
    rows = job.done - first
    return {
        "index": job.index,
        "rows": rows,
        "length": length,
        "seconds": seconds,
        "rows_per_s": rows / seconds if seconds else 0.0,
    }


async def _prepare(job: Job, lake: AsyncClient) -> None:
    try:
        info = await lake.index(job.index)
    except NotFound as error:
        if not job.create:
            raise NotFound(f"no such index; --create makes it. index=`{job.index}`") from error
        await lake.create(job.index, job.source.dimension)
        return
    if info.params.dimension != job.source.dimension:
        raise Invalid(
            f"the index has {info.params.dimension} dimensions, column {job.source.vector_column} has "
            f"another number. dimensions=`{job.source.dimension}`"
        )


async def _send_all(job: Job, lake: AsyncClient, runtime: SystemRuntime, tick: Tick) -> None:
    """One task per request in flight, each taking the next batch when it has sent its last."""
    batches = job.source.batches(job.done)
    reading = asyncio.Lock()

    async def sender() -> None:
        while True:
            async with reading:
                batch = await runtime.run_io(next, batches, None)
            if batch is None:
                return
            row, rows, body = batch
            result = await lake.add_encoded(job.index, body, idempotency_key=job.key(row))
            job.acknowledged(row, rows, result.length)
            tick(job.done)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(job.in_flight):
                group.create_task(sender())
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from failed  # the others fail for the same reason, or were cancelled


@contextlib.contextmanager
def progress_bar(total: int, done: int) -> Iterator[Tick]:
    """Rows, speed and time left, on standard error; nothing moves where that is not a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from lakehouse.cli.output import err_console

    columns = (
        TextColumn("adding"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}", style="progress.data.speed"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err_console(), transient=True) as progress:
        task = progress.add_task("adding", total=total, completed=done, speed="")

        def tick(rows: int) -> None:
            progress.update(task, completed=rows)
            speed = progress.tasks[0].speed
            progress.update(task, speed=f"{speed:,.0f} rows/s" if speed else "")

        yield tick
