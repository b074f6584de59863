"""The routing table as it is known now, followed where it is kept: a file, or a ConfigMap.

What was read last holds until something newer that can be read takes its place: a source that is away, emptied or
broken changes nothing, so an API server that is down for an hour costs no request.  What this module does not do: say
what a table means (`lakehouse.server.routing_table`), or speak to Kubernetes (`lakehouse.server.config_map`).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from lakehouse.core.errors import Invalid
from lakehouse.runtime import Runtime
from lakehouse.server import routing_table
from lakehouse.server.config_map import ConfigMap, ServiceAccount
from lakehouse.server.routing_table import Table

logger = logging.getLogger(__name__)

CONFIG_MAP = "configmap:"
FORMS = "`configmap:NAMESPACE/NAME`, or the path of a file"
FILE_POLL_S = 1.0

Learn = Callable[[bytes | str | None, str], None]
"""Takes the table's text, None where there is none, and why there is none."""


class Source(Protocol):
    """Where a table is kept."""

    async def follow(self, learn: Learn) -> None:
        """Tell what is there now, and again each time it changes; never returns."""
        ...


class Routes:
    """What is declared; `table` is None until the first one was read."""

    def __init__(self, source: Source, where: str, runtime: Runtime) -> None:
        self.table: Table | None = None
        self._source = source
        self._where = where
        self._runtime = runtime
        self._trouble = "not read yet"
        self._following: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether there is a table to go by, however old."""
        return self.table is not None

    @property
    def detail(self) -> str:
        """`ok`, or what is wrong with where the table comes from."""
        return self._trouble or "ok"

    def start(self) -> None:
        self._following = self._runtime.spawn(self._source.follow(self._learn), name="follow routes")

    async def close(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)

    def _learn(self, text: bytes | str | None, why: str) -> None:
        trouble, table = why, None
        if text is not None:
            try:
                trouble, table = "", routing_table.parse(text)
            except Invalid as error:
                trouble = error.message
        if table is not None and table != self.table:
            logger.info(
                "routes indexes=%d ready=%d datasets=%d",
                len(table.indexes),
                len(table.ready_names),
                len(table.datasets),
            )
        self.table = table or self.table
        if trouble and trouble != self._trouble:
            logger.warning(
                "routes cannot be read: the last ones hold. where=%s error=%s", self._where, trouble
            )
        self._trouble = trouble


class TableFile:
    """A table in a file, looked at every second."""

    def __init__(self, path: Path, sleep: Callable[[float], Awaitable[None]], runtime: Runtime) -> None:
        self._path = path
        self._sleep = sleep
        self._runtime = runtime

    async def follow(self, learn: Learn) -> None:
        while True:
            try:
                learn(await self._runtime.run_io(self._path.read_bytes), "")
            except OSError as error:
                learn(None, f"the file cannot be read: {error.strerror}. path=`{self._path}`")
            await self._sleep(FILE_POLL_S)


def opened(where: str, runtime: Runtime, account: ServiceAccount | None = None) -> Routes:
    """What the setting `routes` names.  Raises `Invalid` for another form, or outside a cluster."""
    if not where.startswith(CONFIG_MAP):
        return Routes(TableFile(Path(where), runtime.sleep, runtime), where, runtime)
    namespace, slash, name = where.removeprefix(CONFIG_MAP).partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise Invalid(f"routes (LAKEHOUSE_ROUTES) is {FORMS}. routes=`{where}`")
    found = account or ServiceAccount.of_pod()
    return Routes(ConfigMap(found, namespace, name, routing_table.KEY, runtime), where, runtime)
