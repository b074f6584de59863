"""What `lakehouse up` shows while it converges, and how it follows the files it was given.

A line for each resource that becomes ready, a line for each thing that goes wrong, and on a terminal what is under way
right now.  What this module does not do: converge; `lakehouse.embedded` does.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.text import Text

from lakehouse.cli import kinds, yaml_files
from lakehouse.cli.output import err_console
from lakehouse.cli.yaml_files import Written
from lakehouse.core.errors import Invalid, LakehouseError
from lakehouse.embedded.controller import Embedded
from lakehouse.embedded.known import Key, Known
from lakehouse.runtime import Runtime

REFRESH_S = 0.25
FILES_POLL_S = 1.0


class Display:
    """Tells a person what becomes of the resources."""

    def __init__(self) -> None:
        self._console: Console = err_console()
        self._ready: dict[Key, str] = {}
        self._warned: dict[Key, int] = {}

    def told(self, entry: Known) -> None:
        """A status changed."""
        key = (entry.stored.kind, entry.stored.name)
        resource = {**entry.stored.body, "status": entry.seen.status}
        self._tell_warnings(key, kinds.label(resource), entry.seen.events)
        if not kinds.settled(resource):
            self._ready.pop(key, None)
            return
        build = _version(resource)
        if self._ready.get(key) != build:
            self._ready[key] = build
            self._console.print(
                f"[bold green]{kinds.rest(resource)}[/]  {escape(kinds.label(resource))}  {kinds.summary(resource)}",
                highlight=False,
            )

    def _tell_warnings(self, key: Key, label: str, events: Sequence[Mapping[str, Any]]) -> None:
        warnings = [one for one in events if one["type"] == "Warning"]
        count = sum(one["count"] for one in warnings)
        if count > self._warned.get(key, 0):
            last = warnings[-1]
            self._console.print(
                f"[bold yellow]{last['reason']}[/]  {escape(label)}  {escape(last['message'])}",
                highlight=False,
            )
        self._warned[key] = count

    async def follow(self, embedded: Embedded) -> None:
        """Show the work under way, on a terminal; elsewhere lines are enough."""
        if not self._console.is_terminal:
            return
        with Live(console=self._console, refresh_per_second=4, transient=True, redirect_stdout=False) as live:
            _log_through(sys.stderr)
            try:
                while True:
                    live.update(
                        Group(*(_line(key, work) for key, work in sorted(embedded.progress().items())))
                    )
                    await embedded.runtime.sleep(REFRESH_S)
            finally:
                _log_through(sys.__stderr__)


def _version(resource: Mapping[str, Any]) -> str:
    """What makes being ready news again: another version of the content."""
    status = resource["status"]
    current = status.get("current") or status.get("source") or {}
    return f"{resource['metadata']['generation']}/{current.get('version')}"


def _line(key: Key, work: Any) -> Spinner:
    return Spinner("dots", Text(f"{key[0].lower()}/{key[1]}  {work.action.act}  {work.progress}"))


def _log_through(stream: Any) -> None:
    """Log lines go above the live lines, not through them."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(stream)


async def applied(embedded: Embedded, one: Written) -> str:
    """Apply one resource; what came of it.  Raises `Invalid` with its place in the file."""
    kind, name = one.key
    try:
        return (await embedded.apply(kind, name, one.body, dry_run=False)).result
    except Invalid as error:
        raise one.refused(error) from error


class Watcher:
    """Applies files again when they change; a file that is wrong changes nothing and is told."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        self._console: Console = err_console()
        self._seen = _stamps(self._paths)

    async def follow(self, embedded: Embedded) -> None:
        runtime: Runtime = embedded.runtime
        while True:
            await runtime.sleep(FILES_POLL_S)
            stamps = await runtime.run_io(_stamps, self._paths)
            if stamps == self._seen:
                continue
            self._seen = stamps
            await self._apply(embedded)

    async def _apply(self, embedded: Embedded) -> None:
        try:
            for one in await embedded.runtime.run_io(yaml_files.read, self._paths):
                result = await applied(embedded, one)
                if result != "unchanged":
                    self._console.print(
                        f"[bold]{result}[/]  {escape(kinds.label(one.body))}", highlight=False
                    )
        except LakehouseError as error:
            self._console.print(f"[bold red]not applied:[/] {escape(error.message)}", highlight=False)


def _stamps(paths: Sequence[Path]) -> Mapping[str, tuple[int, int]]:
    """Size and time of change of each file; a file that is missing for a moment has none."""
    found = {}
    try:
        for path in yaml_files.files_of(paths):
            stat = path.stat()
            found[str(path)] = (stat.st_mtime_ns, stat.st_size)
    except (OSError, LakehouseError):
        pass
    return found
