"""`lakehouse sql`: one query, a file of them, what a pipe brings, or a prompt.

What it does not do: understand SQL; the server does.
"""

import contextlib
import enum
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from lakehouse.cli.output import (
    ApiKey,
    Data,
    Url,
    connected,
    console,
    foreign,
    note,
    usage_error,
    written_beside,
)

if TYPE_CHECKING:
    from rich.console import Console

    from lakehouse.client import Client, SqlOptions

TABLE_ROWS = 1_000
"""That a table fetches unless told otherwise; a screen shows fewer, and a file wants another format."""
EXAMPLES = """Examples:

  lakehouse sql "SELECT section, count(*) FROM packages GROUP BY 1 ORDER BY 2 DESC"

  lakehouse sql "SELECT * FROM products WHERE price < $most" --param most=50 -o json

  lakehouse sql -f report.sql --out report.parquet

  lakehouse sql          opens a prompt; .help there tells the rest
"""


class ResultFormat(enum.StrEnum):
    """What the result of a query is written as."""

    TABLE = "table"
    JSON = "json"
    NDJSON = "ndjson"
    CSV = "csv"
    PARQUET = "parquet"
    ARROW = "arrow"


BINARY_FORMATS = (ResultFormat.PARQUET, ResultFormat.ARROW)
SUFFIXES: Mapping[str, ResultFormat] = {
    ".json": ResultFormat.JSON,
    ".ndjson": ResultFormat.NDJSON,
    ".jsonl": ResultFormat.NDJSON,
    ".csv": ResultFormat.CSV,
    ".parquet": ResultFormat.PARQUET,
    ".arrow": ResultFormat.ARROW,
    ".arrows": ResultFormat.ARROW,
}


@dataclass(frozen=True, slots=True)
class Wish:
    """How queries are run and shown."""

    format: ResultFormat
    parameters: Sequence[Any] | Mapping[str, Any] | None = None
    timeout_s: float | None = None
    row_limit: int | None = None
    explain: bool = False

    def options(self) -> "SqlOptions":
        """As the client takes them."""
        limit = TABLE_ROWS if self.format is ResultFormat.TABLE else None
        return {
            "timeout_s": self.timeout_s,
            "row_limit": limit if self.row_limit is None else self.row_limit,
            "explain": self.explain,
        }


def sql(
    query: Annotated[
        str | None,
        typer.Argument(help="One SELECT.  Without it: -f, what a pipe brings, or a prompt.", metavar="QUERY"),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Read statements from a file; `-` is standard input.")
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=VALUE for $NAME, or 1=VALUE for $1 and ?; a value is JSON where it can be, else text."
        ),
    ] = None,
    output: Annotated[
        ResultFormat | None,
        typer.Option(
            "--output", "-o", help="Default: as --out's name says, else a table.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the result to this file; it must not exist, or use --force.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite --out.")] = False,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds a query may run; default: the server's.", min=0.001)
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help=f"Most rows; default {TABLE_ROWS:,} for a table, else the server's.", min=1),
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say how the query was run, too.")] = False,
    data: Data = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Run SQL over the datasets, or open a prompt; `vector_search('index', …)` searches inside it."""
    wish = Wish(
        format=_format(output, out),
        parameters=parameters(param or []),
        timeout_s=timeout,
        row_limit=limit,
        explain=explain,
    )
    text = _text(query, file)
    with connected(url, api_key, data) as lake:
        if text is None:
            from lakehouse.cli.prompt import Prompt

            Prompt(lake, wish).run()
            return
        _run_all(lake, _statements(text, several=out is None), wish, out, force)


def _format(output: ResultFormat | None, out: Path | None) -> ResultFormat:
    """As said, else as the file's name tells.  Raises `Invalid` where it would be a riddle."""
    if out is None:
        chosen = output or ResultFormat.TABLE
        if chosen in BINARY_FORMATS and sys.stdout.isatty():
            usage_error(f"{chosen} is not for terminals; add --out FILE. output=`{chosen}`")
        return chosen
    chosen = output or SUFFIXES.get(out.suffix.lower(), ResultFormat.TABLE)
    if chosen is ResultFormat.TABLE:
        usage_error(
            f"the file's name tells no format; add -o json, ndjson, csv, parquet or arrow. out=`{out}`"
        )
    return chosen


def parameters(given: Sequence[str]) -> Sequence[Any] | Mapping[str, Any] | None:
    """What `--param` was given: by name, or in order where the names are 1, 2, …  Raises `Invalid`."""
    named: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            usage_error(f"--param takes NAME=VALUE. param=`{text}`")
        named[name.removeprefix("$")] = _value(value)
    if not named:
        return None
    if not any(name.isdecimal() for name in named):
        return named
    places = [str(place) for place in range(1, len(named) + 1)]
    if sorted(named, key=lambda name: (len(name), name)) != places:
        usage_error(f"--param by place takes 1, 2, … without gaps or names. given=`{', '.join(named)}`")
    return [named[place] for place in places]


def _value(text: str) -> Any:
    import json

    try:
        return json.loads(text)
    except ValueError:
        return text


def _text(query: str | None, file: Path | None) -> str | None:
    """The statements to run; None where a person is to be asked."""
    if query is not None and file is not None:
        usage_error("give a query or -f, not both")
    if query is not None:
        return query
    if file is not None and str(file) != "-":
        with foreign("cannot read the statements", file):
            return file.read_text(encoding="utf-8")
    if file is None and sys.stdin.isatty() and sys.stdout.isatty():
        return None
    return sys.stdin.read()


def _statements(text: str, *, several: bool) -> Sequence[str]:
    from lakehouse.cli.statements import split

    found = split(text)
    statements = [*found.whole, *([found.rest] if found.rest else [])]
    if not statements:
        usage_error("there is no statement to run")
    if len(statements) > 1 and not several:
        usage_error(f"--out takes one statement. statements=`{len(statements)}`")
    return statements


def _run_all(lake: "Client", statements: Sequence[str], wish: Wish, out: Path | None, force: bool) -> None:
    if out is not None:
        with _written(out, force) as target, target.open("wb") as stream:
            size = export(lake, statements[0], wish, stream)
        note(f"wrote {out}: {size:,} bytes")
        return
    try:
        for statement in statements:
            show(lake, statement, wish, console())
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _written(out: Path, force: bool) -> Iterator[Path]:
    from lakehouse.core.errors import Conflict

    if out.exists() and not force:
        raise Conflict(f"the file exists; name another, or add --force. path=`{out}`")
    with written_beside(out) as partial:
        yield partial


def show(lake: "Client", statement: str, wish: Wish, out: "Console", *, timed: bool = False) -> None:
    """Run one statement and print its result as the wish says."""
    if wish.format is not ResultFormat.TABLE:
        sys.stdout.flush()
        export(lake, statement, wish, sys.stdout.buffer)
        return
    from lakehouse.cli.tables import print_result
    from lakehouse.runtime import SystemRuntime

    clock = SystemRuntime()
    began = clock.monotonic()
    result = lake.sql(statement, wish.parameters, **wish.options())
    print_result(result, out, clock.monotonic() - began if timed else None)
    if result.plan:
        out.print(result.plan, markup=False, highlight=False, soft_wrap=True)


def export(lake: "Client", statement: str, wish: Wish, out: BinaryIO) -> int:
    """Run one statement and write its result as it comes; the bytes written."""
    from lakehouse.client import ARROW, CSV, JSON, NDJSON, PARQUET

    media = {
        ResultFormat.JSON: JSON,
        ResultFormat.NDJSON: NDJSON,
        ResultFormat.CSV: CSV,
        ResultFormat.PARQUET: PARQUET,
        ResultFormat.ARROW: ARROW,
    }[wish.format]
    done = lake.sql_export(statement, out, media, wish.parameters, **wish.options())
    if wish.format is ResultFormat.JSON and out is sys.stdout.buffer:
        out.write(b"\n")
    out.flush()
    truncated = done.truncated
    if truncated is None:
        truncated = bool(lake.query_status(done.query_id).details.get("truncated"))
    if truncated:
        note("[yellow]truncated[/]: a limit cut rows off; ask for less, or raise the server's limit")
    return done.size


sql.__doc__ = f"{sql.__doc__}\n\n{EXAMPLES}"
