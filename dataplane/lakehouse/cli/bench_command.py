"""`lakehouse bench`: the options; the measuring is in `lakehouse.cli.bench`."""

import enum
from pathlib import Path
from typing import Annotated

import typer

from lakehouse.cli.output import Format, Output


class Subject(enum.StrEnum):
    """What to measure."""

    SEARCH = "search"
    LAKE = "lake"


def bench(
    subject: Annotated[
        Subject,
        typer.Argument(
            help="`search`: the index beside in-process hnswlib; `lake`: SQL beside DuckDB alone."
        ),
    ] = Subject.SEARCH,
    file: Annotated[
        Path | None,
        typer.Option(
            envvar="LAKEHOUSE_FULL_DATA",
            help="Parquet file with `id` and `embedding`; default: the full Debian file where it is at hand, "
            "else the subset in examples/.",
            show_default=False,
        ),
    ] = None,
    rows: Annotated[int | None, typer.Option(help="Use only the first rows.", min=2_000)] = None,
    queries: Annotated[int, typer.Option(help="Rows held out as queries.", min=50)] = 1_000,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds per measurement.", min=1)] = 5,
    out: Annotated[Path, typer.Option(help="Where the JSON and the plot go.")] = Path("build/bench"),
    output: Output = Format.TABLE,
) -> None:
    """Measure the server: searches, ingest, memory, restart and filters beside in-process hnswlib; or SQL."""
    if subject is Subject.LAKE:
        from lakehouse.cli.bench import lake

        lake.main(file, rounds, out, output)
        return
    from lakehouse.cli.bench.run import Plan, main

    main(Plan.choose(file, rows, queries, rounds, out), output)
