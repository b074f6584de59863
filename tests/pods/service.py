"""A Service as kube-proxy makes one: each connection goes to some pod that was ready a moment ago.

A pod that dies stays chosen until the next look, and who is sent there is refused or cut off, as in a cluster.
"""

import asyncio
import contextlib
import random
from collections.abc import Sequence
from types import TracebackType

import httpx

from pods.pods import Pod

LOOK_S = 0.5


class Service:
    """A TCP balancer over pods; `url` is where clients go."""

    def __init__(self, pods: Sequence[Pod], seed: int) -> None:
        self._pods = list(pods)
        self._ready: list[Pod] = list(pods)
        self._rng = random.Random(seed)
        self._server: asyncio.Server | None = None
        self._looking: asyncio.Task[None] | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.url = ""

    async def __aenter__(self) -> "Service":
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self._looking = asyncio.create_task(self._look())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        assert self._looking is not None
        self._server.close()
        self._looking.cancel()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(self._looking, *self._connections, return_exceptions=True)

    async def _look(self) -> None:
        async with httpx.AsyncClient(timeout=2) as http:
            while True:
                await asyncio.sleep(LOOK_S)
                said = await asyncio.gather(*(self._is_ready(http, pod) for pod in self._pods))
                self._ready = [pod for pod, ready in zip(self._pods, said, strict=True) if ready]

    async def _is_ready(self, http: httpx.AsyncClient, pod: Pod) -> bool:
        try:
            return (await http.get(f"{pod.url}/readyz")).status_code == 200
        except httpx.TransportError:
            return False

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._joined(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            if not self._ready:
                return
            pod = self._rng.choice(self._ready)
            try:
                there, back = await asyncio.open_connection(pod.host, pod.port)
            except OSError:
                return
            with contextlib.closing(back):
                ways = [asyncio.create_task(_copy(reader, back)), asyncio.create_task(_copy(there, writer))]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
