"""The key by which the processes of one deployment know each other, read again when its file changes.

A Secret that changes reaches each node at another time, up to 90 s apart.  So whoever has read a new key takes the one
before it too, and shows that one where the new one is refused; and whoever is shown a key that it does not know looks
at its file before it refuses.  What this module does not do: say what the key allows (`lakehouse.server.auth`), or
make one.
"""

import hashlib
import hmac
import logging
from pathlib import Path

from lakehouse.core.errors import Invalid
from lakehouse.runtime import Runtime
from lakehouse.settings import PEER_KEY_MIN, Settings

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""Between two looks at the file; each is one `stat`."""
PREVIOUS_S = 300.0
"""How long the key before this one counts: three times what a kubelet takes to bring a changed Secret."""

Stamp = tuple[int, int, int]
"""Which file it is, of what size and since when."""


class PeerKey:
    """What this process shows its peers, and takes from them: one key for good, what a file says, or none."""

    def __init__(self, runtime: Runtime, key: str = "", file: Path | None = None) -> None:
        """Raises `Invalid` for a file without a key."""
        self._runtime = runtime
        self._file = file
        self._stamp = None if file is None else _stamp(file)
        self._key = key if file is None else _read(file)
        self._previous = ""
        self._previous_until_s = 0.0
        self._told = ""

    @classmethod
    def of(cls, settings: Settings, runtime: Runtime) -> "PeerKey":
        """The one that the settings name.  Raises `Invalid` for a file without a key."""
        key = settings.peer_key
        return cls(runtime, "" if key is None else key.get_secret_value(), settings.peer_key_file)

    def __bool__(self) -> bool:
        return bool(self._key)

    def shown(self) -> tuple[str, ...]:
        """What to show: the first, and where that is refused the next; one empty text where there is no key."""
        if self._previous and self._runtime.monotonic() < self._previous_until_s:
            return self._key, self._previous
        return (self._key,)

    def takes(self, presented: bytes) -> bool:
        """Whether it is the key, or the one before it while that counts."""
        if not self:
            return False
        if not self._is_known(presented):
            self.look()
        return self._is_known(presented)

    def _is_known(self, presented: bytes) -> bool:
        digest = hashlib.sha256(presented).digest()
        known = [hashlib.sha256(key.encode()).digest() for key in self.shown()]
        return any(hmac.compare_digest(one, digest) for one in known)

    async def watch(self) -> None:
        """Look every `LOOK_S`, so that the time of the key before this one begins with the change, whoever asks."""
        while self._file is not None:
            self.look()
            await self._runtime.sleep(LOOK_S)

    def look(self) -> None:
        """Read the file if it changed.  One without a key is told of once, and the last key stays."""
        if self._file is None:
            return
        try:
            stamp = _stamp(self._file)
            if stamp is not None and stamp == self._stamp:
                self._told = ""
                return
            key = _read(self._file)
        except Invalid as error:
            self._complain(error.message)
            return
        if stamp == _stamp(self._file):  # else it is being written: the next look has it whole
            self._told, self._stamp = "", stamp
            self._change(key)

    def _complain(self, why: str) -> None:
        if why != self._told:
            logger.warning("the peer key cannot be read again: the last one stays. error=%s", why)
        self._told = why

    def _change(self, key: str) -> None:
        if key == self._key:
            return
        self._previous, self._key = self._key, key
        self._previous_until_s = self._runtime.monotonic() + PREVIOUS_S
        logger.info(
            "the peer key changed: the one before it counts for %d s. file=%s", PREVIOUS_S, self._file
        )


def _stamp(file: Path) -> Stamp | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _read(file: Path) -> str:
    """Without the line's end that editors leave.  Raises `Invalid`."""
    try:
        key = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(
            f"the file with the peer key cannot be read: {error.__class__.__name__}. peer_key_file=`{file}`"
        ) from error
    if len(key) < PEER_KEY_MIN or not (key.isascii() and key.isprintable()):
        raise Invalid(
            f"the file needs a peer key of {PEER_KEY_MIN} printable ASCII characters at least. peer_key_file=`{file}`"
        )
    return key
