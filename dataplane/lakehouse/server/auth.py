"""Bearer keys: who may do what.

A key is 256 random bits, so its SHA-256 can stand in the configuration without salt or stretching: there is
nothing to guess.  Every configured hash is compared in constant time.  What this module does not do:
sessions, users, TLS.
"""

import base64
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from lakehouse.core.errors import Denied
from lakehouse.remote.peer_key import PeerKey
from lakehouse.runtime import Runtime, SystemRuntime
from lakehouse.settings import ApiKey, Right

KEY_PREFIX = "lh_"
"""So that a leaked key is recognised for what it is."""
KEY_BYTES = 32


def new_key(runtime: Runtime | None = None) -> tuple[str, str]:
    """A fresh key and the hash that goes into the configuration."""
    random = (runtime or SystemRuntime()).random()
    key = KEY_PREFIX + base64.urlsafe_b64encode(random.randbytes(KEY_BYTES)).rstrip(b"=").decode()
    return key, hash_key(key.encode())


def hash_key(key: bytes) -> str:
    """Lower-case hex SHA-256."""
    return hashlib.sha256(key).hexdigest()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and what they may do."""

    right: Right
    name: str = ""
    """The key's name in the settings; empty where no key was asked for."""


OWNER = Caller(Right.ADMIN)
"""Every caller of a server without keys."""
PEER = "peer"
"""The name of the key that processes of one deployment show each other."""
_PEER = Caller(Right.ADMIN, PEER)
ANYBODY = Caller(Right.READ)
"""A caller of a route that is open to everyone."""


class KeyRefused(Denied):
    """The caller's key is missing or too weak; a plain `Denied` is the store refusing this server's
    credentials."""


class Guard:
    """Checks a request's key against the right its route needs."""

    def __init__(self, keys: Sequence[ApiKey], peer_key: PeerKey | None = None) -> None:
        """`peer_key` is what processes of one deployment show each other; it carries every right."""
        self._open = not keys
        self._keys = tuple((bytes.fromhex(key.sha256), Caller(key.right, key.name)) for key in keys)
        self._peer_key = peer_key

    @property
    def open(self) -> bool:
        """Whether there are no keys, so that every caller is an admin."""
        return self._open

    def check(self, authorization: bytes | None, needed: Right, *, internal: bool = False) -> Caller:
        """The caller.  An internal route asks for a key where there is a peer key, also of a server that is open.

        Raises `KeyRefused`.
        """
        if self._open and not (internal and self._peer_key):
            return OWNER
        caller = self._caller(authorization)
        if caller is None and authorization:
            raise KeyRefused(
                "the key in `Authorization` is none that this server knows; send it as `Bearer <key>`",
                authenticated=False,
            )
        if caller is None:
            raise KeyRefused(
                "this needs a key: send it as `Authorization: Bearer <key>`", authenticated=False
            )
        require(caller.right, needed)
        return caller

    def _caller(self, authorization: bytes | None) -> Caller | None:
        scheme, _, key = (authorization or b"").partition(b" ")
        if scheme.lower() != b"bearer" or not key:
            return None
        presented = hashlib.sha256(key.strip()).digest()
        found = None
        for stored, caller in self._keys:
            if hmac.compare_digest(stored, presented):
                found = caller
        if found is None and self._peer_key is not None and self._peer_key.takes(key.strip()):
            return _PEER
        return found


def require(right: Right, needed: Right) -> None:
    """Raises `KeyRefused` unless `right` allows what needs `needed`."""
    if not right.allows(needed):
        raise KeyRefused(f"this needs a key with the {needed} right. right=`{right}`", authenticated=True)
