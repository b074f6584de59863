"""Where the processes behind a URL are: its host resolved again every second, and which of them is preferred.

    http://products-shard-0:3110                     one name, all addresses it resolves to
    http://127.0.0.1:3201,127.0.0.1:3202             several hosts, each with its port

The preferred one follows from the addresses and a key alone (rendezvous hashing), so all who see the same addresses
choose the same, and one that comes or goes moves only what was its own.  What this module does not do: connect.
"""

import asyncio
import hashlib
import ipaddress
import logging
import re
import socket
from collections.abc import Iterable, Sequence

from lakehouse.core.errors import Invalid
from lakehouse.runtime import Runtime

logger = logging.getLogger(__name__)

RESOLVED_FOR_S = 1.0
SUSPECT_S = 5.0
"""Seconds an address that did not answer is asked last; a killed pod is out of the Service's records by then."""
PORT_DEFAULT = 80
Place = tuple[str, int]
_PLACE = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")


def parse(url: str) -> tuple[Place, ...]:
    """The hosts and ports that a URL names.  Raises `Invalid`."""
    scheme, separator, rest = url.partition("://")
    found = [_PLACE.fullmatch(part.strip()) for part in rest.rstrip("/").split(",")]
    places = [(part[1].strip("[]"), int(part[2] or PORT_DEFAULT)) for part in found if part is not None]
    if scheme != "http" or not separator or len(places) != len(found) or any(p > 65_535 for _, p in places):
        raise Invalid(
            f"an address of other processes is http://host:port, or http://host:port,host:port,… url=`{url}`"
        )
    return tuple(places)


def ranked(addresses: Iterable[str], key: str) -> list[str]:
    """The addresses, the preferred one first."""
    return sorted(addresses, key=lambda address: _weight(address, key), reverse=True)


def _weight(address: str, key: str) -> bytes:
    return hashlib.blake2b(f"{address} {key}".encode(), digest_size=8).digest()


class Addresses:
    """The addresses behind one URL, as they were about a second ago at most."""

    def __init__(self, url: str, runtime: Runtime) -> None:
        self.url = url
        self._places = parse(url)
        self._runtime = runtime
        self._known: tuple[str, ...] = ()
        self._at = -1e9
        self._suspects: dict[str, float] = {}
        self._looking: asyncio.Task[None] | None = None

    async def by_preference(self, key: str) -> list[str]:
        """All addresses, the preferred one first, those that lately did not answer last."""
        return self._suspects_last(ranked(await self.all(), key))

    async def by_turn(self) -> list[str]:
        """All addresses in an order of chance, those that lately did not answer last."""
        known = list(await self.all())
        if len(known) > 1:
            self._runtime.random().shuffle(known)
        return self._suspects_last(known)

    async def preferred(self, key: str) -> str | None:
        """Of the addresses that answer, the preferred one; None where there is none."""
        first = next(iter(await self.by_preference(key)), None)
        return None if first is None or self._is_suspect(first) else first

    async def all(self) -> tuple[str, ...]:
        """Addresses as `http://ip:port`; none while the name does not resolve."""
        if self._runtime.monotonic() - self._at > RESOLVED_FOR_S:
            if self._looking is None:
                self._looking = self._runtime.spawn(self._look(), name=f"resolve {self.url}")
            if not self._known:
                await asyncio.wait([self._looking])
        return self._known

    def suspect(self, address: str) -> None:
        """An address did not answer."""
        self._suspects[address] = self._runtime.monotonic() + SUSPECT_S
        self._at = -1e9

    def trust(self, address: str) -> None:
        """An address answered."""
        self._suspects.pop(address, None)

    async def close(self) -> None:
        """Stop looking."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    def _is_suspect(self, address: str) -> bool:
        return self._suspects.get(address, 0.0) > self._runtime.monotonic()

    def _suspects_last(self, addresses: Sequence[str]) -> list[str]:
        if not self._suspects:
            return list(addresses)
        return sorted(addresses, key=self._is_suspect)

    async def _look(self) -> None:
        try:
            found: dict[str, None] = {}
            for host, port in self._places:
                for address in await self._resolved(host, port):
                    found[address] = None
            if found:  # a name that does not resolve says that nobody is ready, or that DNS is away
                self._known = tuple(sorted(found))
                self._suspects = {each: until for each, until in self._suspects.items() if each in found}
            self._at = self._runtime.monotonic()
        finally:
            self._looking = None

    async def _resolved(self, host: str, port: int) -> list[str]:
        if _is_address(host):
            return [_address(host, port)]
        try:
            infos = await self._runtime.run_io(socket.getaddrinfo, host, port, 0, socket.SOCK_STREAM)
        except OSError as error:
            logger.debug("a name does not resolve. host=%s error=%s", host, error)
            return []
        return [_address(str(info[4][0]), port) for info in infos]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
