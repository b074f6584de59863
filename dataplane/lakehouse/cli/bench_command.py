"""`lakehouse bench`: the options; the measuring is in `lakehouse.cli.bench`."""

from pathlib import Path
from typing import Annotated

import typer

from lakehouse.cli.output import Format, Output


def bench(
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
    """Measure the server beside in-process hnswlib: speed with recall, ingest, memory, restart, filters."""
    from lakehouse.cli.bench.run import Plan, main

    main(Plan.choose(file, rows, queries, rounds, out), output)
