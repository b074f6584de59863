"""The SQL prompt: statements over several lines until `;`, completed, remembered, and ended by Ctrl-C.

What it does not do: run statements its own way; `lakehouse.cli.sql` shows them as it does without a prompt.
"""

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.lexers import PygmentsLexer
from pygments.lexers.sql import SqlLexer  # type: ignore[import-untyped]

from lakehouse.cli.output import console, escaped, fail, note, print_table
from lakehouse.cli.sql import BINARY_FORMATS, ResultFormat, Wish, show
from lakehouse.cli.statements import is_whole, split
from lakehouse.core.errors import LakehouseError

if TYPE_CHECKING:
    from prompt_toolkit.input import Input
    from prompt_toolkit.output import Output

    from lakehouse.client import Client, Dataset

ASK, ASK_ON = "lakehouse> ", "       ... "
HISTORY_FILE = "sql_history"
COMPLETIONS_MAX = 200

_WORDS = """
    ALL AND ANY AS ASC ASOF BETWEEN BY CASE CAST COLUMNS CROSS CUBE DESC DESCRIBE DISTINCT ELSE END EXCEPT EXCLUDE
    EXISTS EXPLAIN FALSE FILTER FROM FULL GROUP HAVING ILIKE IN INNER INTERSECT INTERVAL IS JOIN LATERAL LEFT LIKE
    LIMIT NATURAL NOT NULL NULLS OFFSET ON OR ORDER OUTER OVER PARTITION PIVOT POSITIONAL QUALIFY REPLACE RIGHT ROLLUP
    SAMPLE SELECT SEMI SUMMARIZE TABLE THEN TRUE UNION UNNEST UNPIVOT USING VALUES WHEN WHERE WINDOW WITH
    abs array_cosine_distance array_distance avg coalesce count current_date date_trunc epoch greatest least length
    list lower max median min now quantile_cont regexp_matches round stddev strftime string_agg sum upper
    vector_search
"""
KEYWORDS = tuple(_WORDS.split())
HELP = """\
[bold]SELECT …;[/]          run a statement; it may span lines, and ends with a semicolon
[bold].tables[/]            datasets: versions, rows, files
[bold].schema NAME[/]       columns of a dataset; NAME@v3 is version 3
[bold].indexes[/]           vector indexes
[bold].timer on|off[/]      say how long each statement took
[bold].mode FORMAT[/]       table, json, ndjson or csv
[bold].quit[/]              leave; Ctrl-D does too
Ctrl-C                ends the running statement, or clears the line; Tab completes; ↑ remembers"""


def history_file(environment: Mapping[str, str]) -> Path:
    """Where the XDG base directories put what a program remembers."""
    state = environment.get("XDG_STATE_HOME", "")
    base = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    return base / "lakehouse" / HISTORY_FILE


def _history() -> History:
    path = history_file(os.environ)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError as error:
        note(f"[dim]history is not kept: {(error.strerror or str(error)).lower()}. path={path}[/]")
        return InMemoryHistory()
    return FileHistory(path)


class Names:
    """What there is to complete: read once, and again when the reader asks to see it."""

    def __init__(self, lake: "Client") -> None:
        self._lake = lake
        self._datasets: tuple[Dataset, ...] = ()
        self._indexes: tuple[str, ...] = ()

    def refresh(self) -> None:
        """Ask the server; without an answer the old names do."""
        try:
            self._datasets = self._lake.datasets()
            self._indexes = self._lake.indexes()
        except LakehouseError:
            return

    @property
    def datasets(self) -> Iterable[str]:
        return (dataset.name for dataset in self._datasets)

    @property
    def indexes(self) -> Iterable[str]:
        return self._indexes

    @property
    def columns(self) -> Iterable[str]:
        return dict.fromkeys(name for dataset in self._datasets for name, _ in dataset.columns)


class SqlCompleter(Completer):
    """Commands at the beginning of a line; in SQL what the server has, then SQL's own words."""

    def __init__(self, names: Names, commands: Iterable[str]) -> None:
        self._names = names
        self._commands = tuple(commands)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """What the word before the cursor may become, in that order."""
        line = document.text_before_cursor
        if line.startswith("."):
            word = line.rpartition(" ")[2]
            pool = self._after_command(line) if " " in line else ((name, "") for name in self._commands)
        else:
            word = document.get_word_before_cursor()
            pool = self._in_sql(word)
        yield from _starting(word, pool)

    def _after_command(self, line: str) -> Iterable[tuple[str, str]]:
        match line.split()[0]:
            case ".schema":
                return ((name, "dataset") for name in self._names.datasets)
            case ".mode":
                return ((form.value, "") for form in ResultFormat if form not in BINARY_FORMATS)
            case ".timer":
                return (("on", ""), ("off", ""))
        return ()

    def _in_sql(self, word: str) -> Iterable[tuple[str, str]]:
        if not word:
            return
        yield from ((quoted(name), "dataset") for name in self._names.datasets)
        yield from ((quoted(name), "column") for name in self._names.columns)
        yield from ((name, "index") for name in self._names.indexes)
        yield from ((name, "") for name in KEYWORDS)


def _starting(word: str, pool: Iterable[tuple[str, str]]) -> Iterable[Completion]:
    found = 0
    for text, meaning in pool:
        if text.lower().lstrip('"').startswith(word.lower().lstrip('"')) and text != word:
            yield Completion(text, start_position=-len(word), display_meta=meaning)
            found += 1
            if found == COMPLETIONS_MAX:
                return


def quoted(name: str) -> str:
    """A name as SQL takes it."""
    if name.isidentifier() and name.isascii() and name.upper() not in KEYWORDS:
        return name
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        """Run what is whole, else go on in the next line."""
        buffer = event.current_buffer
        if buffer.text.lstrip().startswith(".") or _leaves(buffer.text) or is_whole(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    return keys


def _leaves(text: str) -> bool:
    """Without the dot, too: neither word begins a statement, and it is what other prompts take."""
    return text.strip().rstrip(";").strip() in (".quit", ".exit", "quit", "exit")


class Prompt:
    """Reads statements and commands until it is told to leave."""

    def __init__(
        self,
        lake: "Client",
        wish: Wish,
        input: "Input | None" = None,
        output: "Output | None" = None,
        history: History | None = None,
    ) -> None:
        self._lake = lake
        self._wish = wish
        self._timed = sys.stdout.isatty()
        self._out = console()
        self._names = Names(lake)
        self._commands: Mapping[str, Callable[[str], Any]] = {
            ".help": lambda rest: self._out.print(HELP, highlight=False),
            ".tables": self._tables,
            ".schema": self._schema,
            ".indexes": self._indexes,
            ".timer": self._timer,
            ".mode": self._mode,
        }
        self._session: PromptSession[str] = PromptSession(
            ASK,
            multiline=True,
            prompt_continuation=lambda width, number, wrapped: "" if wrapped else ASK_ON,
            key_bindings=_keys(),
            completer=SqlCompleter(self._names, [*self._commands, ".quit"]),
            complete_while_typing=False,
            lexer=PygmentsLexer(SqlLexer),
            history=history or _history(),
            enable_history_search=True,
            input=input,
            output=output,
        )

    def run(self) -> None:
        """Until Ctrl-D or `.quit`."""
        note(
            f"lakehouse at [bold]{escaped(self._lake.url)}[/]; .help tells what this prompt takes, Ctrl-D leaves"
        )
        self._names.refresh()
        while True:
            try:
                text = self._session.prompt().strip()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            if _leaves(text):
                return
            self._handle(text)

    def _handle(self, text: str) -> None:
        """One entry; what goes wrong is told, and the prompt comes back."""
        try:
            if text.startswith("."):
                name, _, rest = text.rstrip(";").partition(" ")
                self._commands.get(name, self._unknown)(rest.strip())
                return
            for statement in split(text).whole:
                show(self._lake, statement, self._wish, self._out, timed=self._timed)
        except LakehouseError as error:
            fail(error)
        except KeyboardInterrupt:
            note("cancelled")

    # --- commands

    def _unknown(self, rest: str) -> None:
        note("no such command; .help lists them")

    def _tables(self, rest: str) -> None:
        self._names.refresh()
        print_table(
            [
                {"name": one.name, "version": one.version, "rows": one.row_count, "files": one.files}
                for one in self._lake.datasets()
            ]
        )

    def _schema(self, rest: str) -> None:
        if not rest:
            note(".schema takes the name of a dataset")
            return
        dataset = self._lake.dataset(rest.strip('"'))
        print_table([{"column": name, "type": kind} for name, kind in dataset.columns])

    def _indexes(self, rest: str) -> None:
        self._names.refresh()
        print_table(
            [
                {"name": name, "dimension": info.params.dimension, "items": info.length}
                for name in self._lake.indexes()
                for info in (self._lake.index(name),)
            ]
        )

    def _timer(self, rest: str) -> None:
        self._timed = rest != "off"
        note(f"timer {'on' if self._timed else 'off'}")

    def _mode(self, rest: str) -> None:
        known = [form.value for form in ResultFormat if form not in BINARY_FORMATS]
        if rest not in known:
            note(f".mode takes one of {', '.join(known)}")
            return
        self._wish = replace(self._wish, format=ResultFormat(rest))
