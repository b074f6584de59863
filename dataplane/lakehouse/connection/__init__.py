"""One way in, whatever is behind it: a URL is asked over HTTP, a directory or bucket is served inside this process.

    with lakehouse.connect("./lakehouse-data") as lake: ...
    async with await lakehouse.connect_async("s3://bucket/prefix") as lake: ...

Inside this process the very same server answers, so there is one client and one set of answers; it holds the
directory's lock as any server does.  What this module does not do: listen; `lakehouse up` does.
"""

import asyncio
import os
import re
from typing import TYPE_CHECKING

from lakehouse.client import AsyncClient, Client, Retries
from lakehouse.client.retries import RETRIES
from lakehouse.client.wire import TIMEOUT_S
from lakehouse.core import errors

if TYPE_CHECKING:
    from lakehouse.connection.in_process import InProcess
    from lakehouse.settings import Settings

Where = str | os.PathLike[str]

IN_PROCESS_URL = "http://lakehouse.in-process"
"""What the HTTP library is told; nothing is ever looked up under it."""
_HOST_AND_PORT = re.compile(r"[A-Za-z0-9.-]+:[0-9]{1,5}")
"""A server's address without its scheme, which would make a directory of that name."""


def connect(
    where: Where | None = None,
    *,
    api_key: str | None = None,
    timeout_s: float = TIMEOUT_S,
    retries: Retries = RETRIES,
    declared: bool = True,
) -> Client:
    """A client of a server (`http://…`), or of a directory, `file:///…`, `s3://bucket/prefix` or `memory:` itself.

    Without `where` it is the server that LAKEHOUSE_URL names, or this machine's.  `api_key` is for servers;
    `declared` is for the others: to look after declared resources meanwhile, as `lakehouse up` does.
    Close the client, or use it as a context manager; what it acknowledged is durable in any case.
    Raises `Conflict` when another process holds the directory, `Invalid` for an address that is none.
    """
    address = None if where is None else os.fspath(where)
    if address is None or _is_url(address):
        return Client(address, api_key=api_key, timeout_s=timeout_s, retries=retries)
    from lakehouse.connection.in_process import BlockingTransport, InProcess  # the server: a second to import

    server = InProcess(_settings(address), declared=declared)
    _wait_for(server)
    transport = BlockingTransport(server)
    client = Client(IN_PROCESS_URL, timeout_s=timeout_s, retries=retries, transport=transport)
    client.url = address
    return client


async def connect_async(
    where: Where | None = None,
    *,
    api_key: str | None = None,
    timeout_s: float = TIMEOUT_S,
    retries: Retries = RETRIES,
    declared: bool = True,
) -> AsyncClient:
    """As `connect`, awaited: the client works on any event loop."""
    address = None if where is None else os.fspath(where)
    if address is None or _is_url(address):
        return AsyncClient(address, api_key=api_key, timeout_s=timeout_s, retries=retries)
    from lakehouse.connection.in_process import AwaitingTransport, InProcess

    server = InProcess(_settings(address), declared=declared)
    try:
        await asyncio.wait([asyncio.wrap_future(server.started)])
    except asyncio.CancelledError:
        server.close()
        raise
    _wait_for(server)
    transport = AwaitingTransport(server)
    client = AsyncClient(IN_PROCESS_URL, timeout_s=timeout_s, retries=retries, transport=transport)
    client.url = address
    return client


def _is_url(address: str) -> bool:
    return address.lower().startswith(("http://", "https://"))


def _settings(address: str) -> "Settings":
    """As a server's, without what concerns a network: whoever can open the directory needs no key."""
    from lakehouse.settings import ALL_ROLES, load

    if _HOST_AND_PORT.fullmatch(address):
        raise errors.Invalid(
            f"the address of a server begins with http://, and a directory of such a name with ./. where=`{address}`"
        )
    return load(data=address, roles=ALL_ROLES, keys=(), host="127.0.0.1")


def _wait_for(server: "InProcess") -> None:
    try:
        server.started.result()
    except errors.Conflict as error:
        raise errors.Conflict(
            "the data is in use; while a lakehouse server runs on it, connect to that server's URL, such as "
            f"http://127.0.0.1:3110: {error.message}"
        ) from error
    except BaseException:
        server.close()
        raise
