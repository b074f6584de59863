"""/healthz, /readyz and /metrics on a port of their own.

Alive means that this loop answers and that turns end; an API server or a bucket that is away makes nothing unhealthy,
because a restart would not bring it back.  Ready means able to take over: a replica that stands by is ready, so that a
rolling update can end the leader; the leader is ready when its cache is whole.  What this module does not do: judge
the resources; their conditions do.
"""

from collections.abc import Awaitable, Callable

from aiohttp import web

QUEUE_OLDEST_S_MAX = 300.0
"""Nobody should wait so long for a turn: then the workers are stuck."""
TURN_S_MAX = 900.0
"""Every request of a turn has a time limit of seconds; a turn that long will not end."""
CLOSE_S = 1.0

Check = Callable[[], str]
"""Why not, in words; empty when it is well."""


class Health:
    """A small HTTP server."""

    def __init__(
        self, host: str, port: int, alive: Check, ready: Check, metrics: Callable[[], bytes]
    ) -> None:
        self._host = host
        self._port = port
        self._alive = alive
        self._ready = ready
        self._metrics = metrics
        self._runner: web.AppRunner | None = None
        self.port = port
        """The one that is listened on, once started."""

    async def start(self) -> None:
        """Listen.  Raises `OSError`."""
        app = web.Application()
        app.router.add_get("/healthz", self._of(self._alive))
        app.router.add_get("/livez", self._of(self._alive))
        app.router.add_get("/readyz", self._of(self._ready))
        app.router.add_get("/metrics", self._numbers)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=CLOSE_S)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def _of(self, check: Check) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(_: web.Request) -> web.StreamResponse:
            why = check()
            return web.Response(status=503 if why else 200, text=f"{why or 'ok'}\n")

        return answer

    async def _numbers(self, _: web.Request) -> web.Response:
        return web.Response(
            body=self._metrics(), headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"}
        )


def stuck(oldest_s: float, longest_turn_s: float) -> str:
    """Why turns do not end; empty when they do."""
    if oldest_s > QUEUE_OLDEST_S_MAX:
        return f"a resource has waited {oldest_s:.0f} s for its turn"
    if longest_turn_s > TURN_S_MAX:
        return f"a turn has taken {longest_turn_s:.0f} s"
    return ""
