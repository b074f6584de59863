"""`lakehouse add` and `lakehouse search`: rows of a Parquet file in, nearest neighbours out."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lakehouse.cli.output import (
    ApiKey,
    Format,
    Output,
    Url,
    connected,
    foreign,
    note,
    print_json,
    shortened,
    show,
    usage_error,
)

if TYPE_CHECKING:
    from lakehouse.client import Found

Name = Annotated[str, typer.Argument(help="The index.", metavar="INDEX")]
SHOWN_CHARACTERS = 60
"""Of one metadata value in a table."""


def add(
    name: Name,
    file: Annotated[Path, typer.Argument(help="A Parquet file.", metavar="FILE.parquet", exists=False)],
    id_column: Annotated[str, typer.Option(help="Column of ids: strings or whole numbers.")] = "id",
    vector_column: Annotated[str, typer.Option(help="Column of vectors: lists of floats.")] = "embedding",
    metadata_columns: Annotated[
        str | None,
        typer.Option(
            help="Columns to keep as metadata, comma-separated; all others by default, `` for none."
        ),
    ] = None,
    create: Annotated[
        bool, typer.Option("--create", help="Make the index if it is missing; the file gives the dimension.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Rows per request.", min=1, max=100_000)] = 1_000,
    in_flight: Annotated[int, typer.Option(help="Requests at a time.", min=1, max=16)] = 2,
    resume: Annotated[
        str | None, typer.Option(help="Go on where an interrupted add stopped; it printed what to give here.")
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    output: Output = Format.TABLE,
) -> None:
    """Add the rows of a Parquet file; each batch is durable and searchable once acknowledged."""
    from lakehouse.cli import loading
    from lakehouse.runtime import SystemRuntime

    columns = None if metadata_columns is None else [part for part in metadata_columns.split(",") if part]
    with foreign("cannot read the Parquet file", file):
        source = loading.Source.open(file, id_column, vector_column, columns, batch_size)
    run = loading.Run.parse(resume) if resume else loading.Run(SystemRuntime().uuid().hex[:16])
    job = loading.Job(name, source, run, create=create, in_flight=in_flight)
    runner = asyncio.Runner()
    try:
        with runner, loading.progress_bar(source.rows, run.row) as tick:
            summary = runner.run(loading.load(job, url, api_key, tick))
    except BaseException:
        if job.done and job.done < source.rows:
            note(f"{job.done:,} rows are safe.  To go on: the same command with --resume {job.resume_token}")
        raise
    if output is Format.JSON:
        print_json(summary)
    else:
        note(
            f"added {summary['rows']:,} rows to [bold]{name}[/] in {summary['seconds']:.1f} s "
            f"({summary['rows_per_s']:,.0f} rows/s); it now holds {summary['length']:,} items"
        )


def search(
    name: Name,
    vector: Annotated[str | None, typer.Option(help="A JSON list of numbers, or @FILE holding one.")] = None,
    like: Annotated[
        str | None, typer.Option("--like", "--id", help="The id of a stored item, to find its neighbours.")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", help="Results.", min=1, max=1_000)] = 10,
    filter: Annotated[
        str | None,
        typer.Option(help="SQL predicate over metadata, such as \"price < 50 AND country = 'SE'\"."),
    ] = None,
    ef: Annotated[int | None, typer.Option(help="Candidates kept; default: the index's.", min=1)] = None,
    columns: Annotated[
        str | None,
        typer.Option("--show", help="Metadata to show in the table, comma-separated; default: all."),
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    output: Output = Format.TABLE,
) -> None:
    """Find the nearest items to a vector, or to a stored item."""
    from lakehouse.client import SearchOptions

    if (vector is None) == (like is None):
        usage_error(
            "give one of the two: --id ID finds what is like a stored item, --vector '[0.1, 0.2]' what is near it"
        )
    options = SearchOptions(k=k, explain=True)
    if filter is not None:
        options["filter"] = filter
    if ef is not None:
        options["ef"] = ef
    with connected(url, api_key) as lake:
        if like is not None:
            found = lake.search_like(name, like, **options)
        else:
            found = lake.search(name, _vector(vector or ""), **options)
    _show(found, output, None if columns is None else columns.split(","))


def _vector(text: str) -> list[float]:
    import orjson

    if text.startswith("@"):
        path = Path(text[1:])
        with foreign("cannot read the vector", path):
            text = path.read_text(encoding="utf-8")
    try:
        value = orjson.loads(text)
        return [float(number) for number in value]
    except (ValueError, TypeError) as error:
        raise typer.BadParameter(
            f"a vector is a JSON list of numbers, such as [0.1, 0.2]. vector=`{shortened(text)}`"
        ) from error


def _show(found: "Found", output: Format, columns: list[str] | None) -> None:
    results = [
        {"id": match.id, "distance": match.distance, "metadata": match.metadata} for match in found.matches
    ]
    if output is Format.JSON:
        print_json({"results": results, "plan": dict(found.plan)})
        return
    show(results, output, [_row(result, columns) for result in results])
    if found.plan.get("matched") is not None:
        note(f"[dim]{found.plan['matched']:,} items match the filter; strategy: {found.plan['strategy']}[/]")
    if found.stale_s:
        note(f"[yellow]the store does not answer; this may be {found.stale_s:.0f} s behind[/]")


def _row(result: dict[str, Any], columns: list[str] | None) -> dict[str, Any]:
    metadata = result["metadata"]
    values = metadata if isinstance(metadata, dict) else {"metadata": metadata}
    wanted = list(values) if columns is None else columns
    shown = {name: _short(values.get(name)) for name in wanted}
    return {"id": result["id"], "distance": f"{result['distance']:.4f}"} | shown


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > SHOWN_CHARACTERS:
        return value[: SHOWN_CHARACTERS - 1] + "…"
    return value
