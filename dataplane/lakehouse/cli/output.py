"""How the command line speaks: results on standard output, everything else on standard error, and exit codes.

What it does not do: decide what to say.
"""

import contextlib
import enum
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from lakehouse.core import errors

if TYPE_CHECKING:
    from rich.console import Console

    from lakehouse.client import Client

ATTEMPTS_MAX = 3
"""About a second of a person's time."""


class Format(enum.StrEnum):
    """What a result is printed as."""

    TABLE = "table"
    JSON = "json"


class Exit(enum.IntEnum):
    """What a program may conclude."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    CONFLICT = 4
    UNAVAILABLE = 5
    INTERRUPTED = 130


EXIT_CODES = (
    "Exit codes: 0 ok · 1 the operation failed · 2 wrong usage or input · 3 not found · 4 conflict, such as "
    "an index that exists · 5 unavailable or busy: try again · 130 interrupted."
)

Output = Annotated[
    Format, typer.Option("--output", "-o", help="`table` for people, `json` for programs.", show_default=True)
]
Url = Annotated[
    str | None,
    typer.Option(
        envvar="LAKEHOUSE_URL",
        help="The server's address.  Default: http://127.0.0.1:3110.",
        show_default=False,
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="LAKEHOUSE_API_KEY", help="Bearer key, where the server wants one.", show_default=False
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="Work on this directory or s3://bucket/prefix itself, with no server running on it.",
        show_default=False,
    ),
]

_EXITS: tuple[tuple[type[errors.LakehouseError], Exit], ...] = (
    (errors.NotFound, Exit.NOT_FOUND),
    (errors.Conflict, Exit.CONFLICT),
    (errors.Invalid, Exit.USAGE),
    (errors.TooLarge, Exit.USAGE),
    (errors.Busy, Exit.UNAVAILABLE),
    (errors.Unavailable, Exit.UNAVAILABLE),
)


def exit_code(error: errors.LakehouseError) -> Exit:
    """The code that stands for a kind of error."""
    return next((code for kind, code in _EXITS if isinstance(error, kind)), Exit.FAILED)


def advice(error: errors.LakehouseError) -> str | None:
    """What to do next, where the message does not say it already."""
    match error:
        case errors.Denied(authenticated=False):
            return "set LAKEHOUSE_API_KEY, or pass --api-key"
        case errors.Denied():
            return "use a key with that right; `lakehouse key new --right …` makes one"
        case _ if error.message.startswith("no such index"):
            return "`lakehouse index list` shows what there is"
        case _ if error.message.startswith("no such dataset"):
            return "`lakehouse dataset list` shows what there is"
        case errors.TooLarge():
            return "send less at a time, such as `--batch-size 100`"
        case errors.Busy():
            return "wait a moment, then repeat"
        case errors.StorageFull():
            return "free some space, then repeat; nothing was written"
        case errors.Unavailable(outcome=errors.Outcome.NOT_COMMITTED):
            return "nothing was changed; `lakehouse doctor` looks for the reason"
        case errors.Unavailable():
            return "it may or may not have happened: repeat it once the server answers"
        case errors.Corrupt():
            return "put the object back from a copy of the bucket, or restore the index from a snapshot that verifies"
    return None


def fail(error: errors.LakehouseError) -> Exit:
    """Say what went wrong and what to do next; no traceback, because it is known."""
    err = err_console()
    err.print(f"[bold red]error:[/] {escaped(_text_of(error))}", highlight=False)
    hint = advice(error)
    if hint:
        err.print(f"[dim]hint:[/] {escaped(hint)}", highlight=False)
    return exit_code(error)


def _text_of(error: errors.LakehouseError) -> str:
    return error.message.encode("utf-8", "backslashreplace").decode()


def escaped(text: str) -> str:
    """Somebody's text, so that `note` does not read markup in it."""
    from rich.markup import escape

    return escape(text)


UNWRAPPED_MAX = 24
"""Characters of a cell that stays on one line."""
SHOWN_CHARACTERS = 40
"""Of a value from somebody's data in a table of ours."""
PIPE_WIDTH = 200
"""Characters per line where nobody said how wide the paper is."""


def console() -> "Console":
    """Standard output; rich honours NO_COLOR and COLUMNS and leaves colours out of pipes."""
    from rich.console import Console

    if sys.stdout.isatty() or "COLUMNS" in os.environ:
        return Console()
    return Console(width=PIPE_WIDTH)


def err_console() -> "Console":
    """Standard error: errors, progress, hints."""
    from rich.console import Console

    return Console(stderr=True, soft_wrap=not sys.stderr.isatty())


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    """What JSON has no type for: arrays as lists, paths and ids as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def show(value: Any, output: Format, rows: Sequence[Mapping[str, Any]], title: str | None = None) -> None:
    """`value` as JSON, or `rows` as a table."""
    if output is Format.JSON:
        print_json(value)
    else:
        print_table(rows, title)


def print_table(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> None:
    """Rows with the columns of the first; numbers to the right; where space is short long text wraps."""
    from rich import box
    from rich.table import Table

    out = console()
    if not rows:
        out.print("(nothing)", style="dim")
        return
    names = list(rows[0])
    cells = [[cell(row.get(name)) for name in names] for row in rows]
    widths = [max(len(line[j]) for line in cells) for j in range(len(names))]
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_header=any(name.strip() for name in names),
    )
    for j, name in enumerate(names):
        numeric = all(isinstance(row.get(name), int | float) for row in rows)
        elastic = widths[j] > UNWRAPPED_MAX and not numeric
        table.add_column(
            name,
            justify="right" if numeric else "left",
            no_wrap=not elastic,
            overflow="fold" if elastic else "ellipsis",
        )
    for line in cells:
        table.add_row(*map(escaped, line))
    out.print(table)


def cell(value: Any) -> str:
    """One value as a person reads it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1_000 else f"{value:,.0f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={cell(inner)}" for key, inner in value.items())
    return str(value)


def shortened(value: Any) -> Any:
    """A value whose text may be of any length, for a table."""
    text = None if value is None else str(value)
    return value if text is None or len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


def counted(rows: int) -> str:
    """`1 row`, `1,234 rows`."""
    return f"{rows:,} row{'' if rows == 1 else 's'}"


def facts(value: Mapping[str, Any], output: Format, title: str | None = None) -> None:
    """A mapping as JSON, or as a table of two columns."""
    show(value, output, [{"": name, " ": cell(inner)} for name, inner in value.items()], title)


def note(text: str) -> None:
    """A line for people, on standard error so that it never gets into a pipe."""
    err_console().print(text, highlight=False)


def usage_error(message: str) -> NoReturn:
    """The options contradict each other or miss something."""
    raise errors.Invalid(message)


@contextlib.contextmanager
def foreign(act: str, path: Path) -> Iterator[None]:
    """Turn the operating system's errors about a file that a person named into known ones."""
    try:
        yield
    except FileNotFoundError as error:
        raise errors.NotFound(f"{act}: there is no such file. path=`{path}`") from error
    except OSError as error:
        raise errors.Invalid(f"{act}: {(error.strerror or str(error)).lower()}. path=`{path}`") from error


@contextlib.contextmanager
def written_beside(out: Path) -> Iterator[Path]:
    """A path next to `out` that gets its name once it is whole."""
    if not out.parent.is_dir():
        raise errors.NotFound(f"cannot write the file: there is no such folder. folder=`{out.parent}`")
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with foreign("cannot write the file", out):
            partial.touch(exist_ok=False)
        yield partial
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def connected(url: str | None, api_key: str | None, data: str | None = None) -> "Client":
    """A client that gives up soon, because a person waits; of `data` itself where that is given."""
    from lakehouse.client import Client, Retries

    retries = Retries(attempts_max=ATTEMPTS_MAX)
    if data is None:
        return Client(url, api_key=api_key, retries=retries)
    from lakehouse.connection import connect

    return connect(data, retries=retries, declared=False)
