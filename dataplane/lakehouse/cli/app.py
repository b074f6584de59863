"""All commands in one tree, and the one place where known errors become exit codes."""

from typing import Annotated

import typer

from lakehouse.cli import bench_command, doctor, indexes, items, keys, serving, snapshots
from lakehouse.cli.output import EXIT_CODES, Exit, Format, Output, fail, print_json
from lakehouse.core.errors import LakehouseError

HELP = "Vector search whose only durable state is a bucket, or a directory on this machine."
FIRST_STEPS = "Begin with `lakehouse up`; then `lakehouse add INDEX FILE.parquet --create`."

app = typer.Typer(
    name="lakehouse",
    help=HELP,
    epilog=f"{FIRST_STEPS}  {EXIT_CODES}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serving.serve)
app.command()(serving.up)
app.command()(items.add)
app.command()(items.search)
app.add_typer(indexes.app, name="index")
app.add_typer(snapshots.app, name="snapshot")
app.command()(doctor.doctor)
app.command()(bench_command.bench)
app.add_typer(keys.app, name="key")


@app.command()
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
