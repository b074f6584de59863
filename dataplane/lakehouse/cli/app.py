"""All commands in one tree, and the one place where known errors become exit codes."""

from typing import Annotated

import typer

from lakehouse.cli import (
    bench_command,
    dataset,
    declared,
    doctor,
    indexes,
    ingest,
    items,
    keys,
    report,
    serving,
    snapshots,
    sql,
    work,
)
from lakehouse.cli.output import EXIT_CODES, Exit, Format, Output, fail, print_json
from lakehouse.core.errors import LakehouseError

HELP = "Vector search and SQL whose only durable state is a bucket, or a directory on this machine."
FIRST_STEPS = (
    "Begin with `lakehouse up`; then `lakehouse ingest FILE --name NAME` and `lakehouse sql`, or "
    "`lakehouse add INDEX FILE.parquet --create` and `lakehouse search`."
)

app = typer.Typer(
    name="lakehouse",
    help=HELP,
    epilog=f"{FIRST_STEPS}  {EXIT_CODES}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
SERVE, LAKE, VECTORS, TOOLS = "Serve", "Datasets and SQL", "Vectors", "Tools"
DECLARED = "Declared resources"

app.command(rich_help_panel=SERVE)(serving.up)
app.command(rich_help_panel=SERVE)(serving.serve)
for command in (declared.apply, declared.get, declared.describe, declared.delete, declared.diff):
    app.command(rich_help_panel=DECLARED)(command)
app.command(rich_help_panel=LAKE)(ingest.ingest)
app.command(rich_help_panel=LAKE)(sql.sql)
app.add_typer(dataset.app, name="dataset", rich_help_panel=LAKE)
app.command(rich_help_panel=VECTORS)(items.add)
app.command(rich_help_panel=VECTORS)(items.search)
app.add_typer(indexes.app, name="index", rich_help_panel=VECTORS)
app.add_typer(snapshots.app, name="snapshot", rich_help_panel=VECTORS)
app.command(rich_help_panel=TOOLS)(doctor.doctor)
app.command(rich_help_panel=TOOLS)(report.report)
app.command(rich_help_panel=TOOLS)(bench_command.bench)
app.add_typer(keys.app, name="key", rich_help_panel=TOOLS)
app.command(rich_help_panel=TOOLS, hidden=True)(work.work)


@app.command(rich_help_panel=TOOLS)
def version(output: Output = Format.TABLE) -> None:
    """Print the version."""
    from lakehouse import __version__

    if output is Format.JSON:
        print_json({"version": __version__})
    else:
        typer.echo(f"lakehouse {__version__}")


def _print_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def root(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Options before the command; its docstring is `HELP`."""


def run() -> int:
    """Run the command line; known errors take a line, anything else is a bug with a traceback."""
    try:
        app()
    except LakehouseError as error:
        return fail(error)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else Exit.OK if ended.code is None else Exit.FAILED
    return Exit.OK
