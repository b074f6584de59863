"""A bucket's keys in files, read again when they change: who rotates a mounted Secret restarts nothing.

boto3 asks `DirectoryProvider` first, and signs every request with what the files say then.  Three `stat`s tell
whether they changed: microseconds beside a request's milliseconds.  A Secret's volume changes as a whole, by one
rename, and files that changed while they were read are read again, so that keys of two Secrets are never mixed.
What it does not do: remember a key whose file is gone, or look for one elsewhere.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from botocore.credentials import Credentials, ReadOnlyCredentials

from lakehouse.core.errors import CredentialsRefused, Outcome

KEY_ID, SECRET_KEY, TOKEN = FILES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
"""Named as the variables that every AWS tool reads; only the token may be missing."""
READS_MAX = 8
"""Files that change so often while they are read are not a Secret's."""

Stamp = tuple[tuple[int, int, int] | None, ...]
"""Which files they are, of what size and since when; None for one that is not there."""


class DirectoryProvider:
    """A link of boto3's chain of credentials, to be put before the others; it always has some."""

    METHOD = "lakehouse-directory"

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self) -> "DirectoryCredentials":
        return DirectoryCredentials(self._directory)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the files said, and when that was."""

    stamp: Stamp
    credentials: ReadOnlyCredentials


class DirectoryCredentials(Credentials):  # type: ignore[misc]  # botocore has no types
    """Credentials that are what the files of a directory say; any thread may ask."""

    method = DirectoryProvider.METHOD
    account_id = None

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._seen: _Seen | None = None

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """Those of one moment.  Raises `CredentialsRefused` where the files name none."""
        seen = self._seen
        if seen is None or seen.stamp != _stamp(self._directory):
            seen = self._seen = _read(self._directory)
        return seen.credentials

    @property
    def access_key(self) -> str:
        return str(self.get_frozen_credentials().access_key)

    @property
    def secret_key(self) -> str:
        return str(self.get_frozen_credentials().secret_key)

    @property
    def token(self) -> str | None:
        found: str | None = self.get_frozen_credentials().token
        return found


def _read(directory: Path) -> _Seen:
    for _ in range(READS_MAX):
        stamp = _stamp(directory)
        found = {name: _text(directory / name) for name in FILES}
        if stamp == _stamp(directory):
            break
    for name in (KEY_ID, SECRET_KEY):
        if not found[name]:
            raise _refused(
                f"the file has no key: the Secret needs {KEY_ID} and {SECRET_KEY}", directory / name
            )
    return _Seen(stamp, ReadOnlyCredentials(found[KEY_ID], found[SECRET_KEY], found[TOKEN] or None))


def _stamp(directory: Path) -> Stamp:
    return tuple(_stamp_of(directory / name) for name in FILES)


def _stamp_of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _text(path: Path) -> str:
    """Without the line's end that editors leave; empty for a file that is not there."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise _refused(f"the key cannot be read: {error.__class__.__name__}", path) from error


def _refused(what: str, path: "os.PathLike[str]") -> CredentialsRefused:
    return CredentialsRefused(f"{what}. path=`{os.fspath(path)}`", outcome=Outcome.NOT_COMMITTED)
