"""The archive: files go in redacted, what could not be had is noted, and it appears whole or not at all.

What this module does not do: find anything to put in.
"""

import contextlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from lakehouse.cli.support.redact import Redactor
from lakehouse.core.errors import Conflict, Invalid, LakehouseError

FILE_BYTES_MAX = 8 << 20
"""Of one file; of a longer one the end is kept."""


class Bundle:
    """A support bundle in the making."""

    def __init__(
        self,
        archive: tarfile.TarFile,
        folder: str,
        redactor: Redactor,
        at: datetime,
        tell: Callable[[str], None],
    ) -> None:
        self._archive = archive
        self._folder = folder
        self._redactor = redactor
        self._at = at
        self._tell = tell
        self._names: list[str] = []
        self.missing: list[str] = []
        """What could not be had, and why."""

    def text(self, name: str, text: str) -> None:
        """Add a file of text."""
        data = self._redactor.text(text).encode("utf-8", "backslashreplace")
        if len(data) > FILE_BYTES_MAX:
            data = b"[the beginning was left out]\n" + data[-FILE_BYTES_MAX:]
        info = tarfile.TarInfo(f"{self._folder}/{name}")
        info.size, info.mtime, info.mode = len(data), int(self._at.timestamp()), 0o600
        self._archive.addfile(info, io.BytesIO(data))
        self._names.append(name)

    def json(self, name: str, value: Any) -> None:
        """Add a JSON value."""
        self.text(name, json.dumps(self._redactor.tree(value), indent=1, ensure_ascii=False) + "\n")

    def collect(self, what: str, collecting: Callable[[], None]) -> None:
        """Do one part; that it fails is noted, and the other parts go on."""
        self._tell(what)
        try:
            collecting()
        except LakehouseError as error:
            self.missing.append(f"{what}: {error.message}")

    def finish(self) -> None:
        """Add what is in here, and what is not."""
        self.text("missing.txt", "".join(f"{line}\n" for line in self.missing) or "nothing\n")
        self.text("contents.txt", "".join(f"{name}\n" for name in sorted(self._names)))


@contextlib.contextmanager
def writing(path: Path, redactor: Redactor, at: datetime, tell: Callable[[str], None]) -> Iterator[Bundle]:
    """A bundle at `path`, readable by its owner only, once this ends well.

    Raises `Conflict` when something is there, `Invalid` when it cannot be written.
    """
    if path.exists():
        raise Conflict(f"the file is there already: choose another with --output. output=`{path}`")
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError as error:
        raise Invalid(f"the file cannot be written: {error.strerror}. output=`{path}`") from error
    try:
        with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            bundle = Bundle(archive, path.name.removesuffix(".tar.gz"), redactor, at, tell)
            yield bundle
            bundle.finish()
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)
