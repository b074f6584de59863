"""`lakehouse ingest`: files in, a dataset version out, and every row that could not be read accounted for.

What it does not do: read rows; the server does.
"""

import contextlib
import enum
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lakehouse.cli.output import (
    ApiKey,
    Data,
    Format,
    Output,
    Url,
    connected,
    counted,
    escaped,
    foreign,
    note,
    print_json,
    print_table,
    shortened,
    usage_error,
)

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from lakehouse.client import Client, Ingested, IngestOptions

LOOK_S = 0.3
"""Between questions how far the server is."""
EXAMPLES = """Examples:

  lakehouse ingest products.csv --name products

  lakehouse ingest 2026-*.parquet --name sales --mode append --policy AddOnly

  lakehouse ingest messy.csv.gz --name products --dry-run

  lakehouse ingest raw.ndjson --name cheap --transform "SELECT * FROM source WHERE price < 50"
"""


class ModeName(enum.StrEnum):
    """What becomes of rows that are there already."""

    REPLACE = "replace"
    APPEND = "append"


class FormatName(enum.StrEnum):
    """What a file is read as."""

    CSV = "csv"
    TSV = "tsv"
    JSON = "json"
    NDJSON = "ndjson"
    PARQUET = "parquet"


class PolicyName(enum.StrEnum):
    """How far a new version's schema may differ."""

    STRICT = "Strict"
    ADD_ONLY = "AddOnly"
    ANY = "Any"


def ingest(
    files: Annotated[
        list[Path],
        typer.Argument(help="CSV, TSV, JSON, NDJSON or Parquet, also .gz or .zst.", metavar="FILES…"),
    ],
    name: Annotated[str, typer.Option("--name", "-n", help="The dataset.")],
    mode: Annotated[
        ModeName, typer.Option(help="`replace`: the dataset is these files now; `append`: they are added.")
    ] = ModeName.REPLACE,
    format: Annotated[
        FormatName | None, typer.Option(help="Default: by the file's name, else by its first bytes.")
    ] = None,
    policy: Annotated[
        PolicyName | None,
        typer.Option(help="Whether columns may be added (AddOnly) or changed (Any); default: Strict."),
    ] = None,
    transform: Annotated[
        str | None, typer.Option(help="A SELECT over the table `source`, or @FILE holding one.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE for the reader, such as delimiter=; or header=false; repeatable."),
    ] = None,
    max_rejects: Annotated[
        int | None, typer.Option(help="Most rows that may be unreadable; default: all but one.", min=0)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read and judge everything, publish nothing.")
    ] = False,
    data: Data = None,
    url: Url = None,
    api_key: ApiKey = None,
    output: Output = Format.TABLE,
) -> None:
    """Make files a dataset: Parquet in the bucket, published as one new version, searchable with SQL."""
    for file in files:
        with foreign("cannot read the file", file), file.open("rb"):
            pass
    options: IngestOptions = {
        "format": None if format is None else format.value,
        "schema_policy": None if policy is None else policy.value,
        "transform": None if transform is None else _transform(transform),
        "max_rejects": max_rejects,
        "options": dict(map(_pair, option or [])),
        "dry_run": dry_run,
        "mode": "replace" if mode is ModeName.REPLACE else "append",
    }
    shown = files[0].name if len(files) == 1 else f"{len(files):,} files"
    with connected(url, api_key, data) as lake, _bars(lake, name, shown) as told:
        done = lake.ingest(files, name, progress=told, **options)
    if output is Format.JSON:
        print_json(done.details)
    else:
        _tell(shown, name, done, dry_run)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        usage_error(f"--option takes NAME=VALUE. option=`{text}`")
    return name, value


def _transform(text: str) -> str:
    if not text.startswith("@"):
        return text
    path = Path(text[1:])
    with foreign("cannot read the transform", path):
        return path.read_text(encoding="utf-8")


# --- progress -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _bars(lake: "Client", name: str, shown: str) -> Iterator[Any]:
    """A bar for the bytes that are sent, then one for what the server makes of them; on a terminal only."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    from lakehouse.cli.output import err_console

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=err_console(), transient=True, disable=not err_console().is_terminal
    ) as bars:
        task = bars.add_task(f"sending {shown}", total=None, said="")

        def told(sent: int, total: int) -> None:
            bars.update(task, completed=sent, total=total)

        with _watched(lake, name, bars, task):
            yield told


@contextlib.contextmanager
def _watched(lake: "Client", name: str, bars: "Progress", task: "TaskID") -> Iterator[None]:
    """While this lasts a thread asks the server how far it is."""
    if bars.disable:
        yield
        return
    over = threading.Event()

    def watch() -> None:
        from lakehouse.core.errors import LakehouseError

        while not over.wait(LOOK_S):
            try:
                running = [one for one in lake.ingests() if one.get("name") == name]
            except LakehouseError:
                continue
            for one in running:
                bars.update(task, **_seen(one))

    watcher = threading.Thread(target=watch, name="ingest progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _seen(running: Mapping[str, Any]) -> dict[str, Any]:
    """What a bar shows of an ingest that runs on the server."""
    return {
        "description": str(running.get("step", "converting")),
        "completed": running.get("bytes_read", 0),
        "total": running.get("bytes_total") or None,
        "said": counted(running["rows"]) if running.get("rows") else "",
    }


# --- what is told -------------------------------------------------------------------------------------------


def _tell(shown: str, name: str, done: "Ingested", dry_run: bool) -> None:
    if dry_run:
        _tell_dry(name, done)
        return
    dataset, said = done.dataset, escaped(shown)
    rows = "" if dataset.row_count is None else f": {counted(dataset.row_count)}"
    if done.published:
        note(f"{said}: published [bold]{escaped(name)}[/] version {dataset.version}{rows}")
    else:
        note(f"{said}: no change; [bold]{escaped(name)}[/] stays at version {dataset.version}{rows}")
    _tell_changes(done)
    if done.rejected:
        note(
            f"[yellow]{counted(done.rejected)} could not be read[/]; "
            f"`lakehouse dataset rejects {escaped(name)}` shows them"
        )


def _tell_dry(name: str, done: "Ingested") -> None:
    print_table([{"column": column, "type": kind} for column, kind in done.dataset.columns], title="schema")
    sample = done.details.get("sample") or ()
    if sample:
        print_table([{key: shortened(value) for key, value in row.items()} for row in sample], title="sample")
    first = done.details["rejects"].get("rows") or ()
    if first:
        print_table(list(first), title=f"rejected: {counted(done.rejected)}, the first {len(first):,}")
    _tell_changes(done)
    rows = "" if done.dataset.row_count is None else f" with {counted(done.dataset.row_count)}"
    note(f"a dry run: nothing was published; {escaped(name)} would be version {done.dataset.version}{rows}")


def _tell_changes(done: "Ingested") -> None:
    for change in done.details.get("changes") or ():
        types = " → ".join(one for one in (change.get("old"), change.get("new")) if one)
        note(escaped(f"  schema: {change['change']} {change['column']}: {types}"))


ingest.__doc__ = f"{ingest.__doc__}\n\n{EXAMPLES}"
