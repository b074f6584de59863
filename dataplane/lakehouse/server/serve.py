"""Serving: bind, start, answer, and on SIGTERM or SIGINT finish what was taken and end well.

What it does not do: read the configuration or print for people; the command line does.
"""

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import uvicorn
import uvloop

from lakehouse.core.errors import Conflict, Invalid
from lakehouse.server.app import App, create_app
from lakehouse.server.declared import ControllerFactory
from lakehouse.server.protocol import OneWriteProtocol
from lakehouse.settings import Settings

logger = logging.getLogger(__name__)

BACKLOG = 2_048
SWITCH_INTERVAL_S = 0.001
"""How long a worker may hold the interpreter while the event loop waits for it; Python's default is 5 ms."""
KEEP_ALIVE_S = 75
"""Longer than the 60 s that load balancers keep idle connections, so that they hang up first."""


def serve(
    settings: Settings,
    ready: Callable[[str], None] | None = None,
    controller: ControllerFactory | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; returns when everything taken is finished.

    `ready` is called with the URL once connections are accepted; `controller` makes what keeps declared resources.
    Raises `Conflict` when the port or the data
    directory is taken, `Invalid` for an address that cannot be used, and what opening the store raises.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    if settings.log_level != "debug":
        logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request that is passed on
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve_until_stopped(settings, ready, controller))


async def serve_until_stopped(
    settings: Settings,
    ready: Callable[[str], None] | None = None,
    controller: ControllerFactory | None = None,
) -> None:
    """`serve` on the running loop."""
    listener = _bound(settings.host, settings.port)
    with contextlib.closing(listener):
        app = create_app(settings, controller=controller)
        try:
            await app.start()
            await _run(app, listener, ready)
        finally:
            await app.close()
    logger.info("stopped")


async def _run(app: App, listener: socket.socket, ready: Callable[[str], None] | None) -> None:
    server = _Server(app, _config(app), lambda: _announce(listener, ready))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    try:
        await server.serve(sockets=[listener])
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _config(app: App) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=OneWriteProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(app.settings.shutdown_s) or 1,
    )


class _Server(uvicorn.Server):
    """uvicorn without its signal handling: it would die of the signal after a clean end, and we end with 0."""

    def __init__(self, app: App, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._app = app
        self._announce = started
        self._draining: asyncio.TimerHandle | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        """Be unready, go on serving for as long as the settings say, then stop accepting and finish what was taken.

        A second signal does not wait for any of it.
        """
        logger.info("stopping")
        drain_s = self._app.settings.drain_s
        if drain_s and self._draining is None and not self.should_exit:
            self._app.drain()
            self._draining = asyncio.get_running_loop().call_later(drain_s, self._end)
            return
        self.force_exit = self.should_exit or self._draining is not None
        self._end()

    def _end(self) -> None:
        self._app.drain()
        if self._draining is not None:
            self._draining.cancel()
        self.should_exit = True


def _announce(listener: socket.socket, ready: Callable[[str], None] | None) -> None:
    url = url_of(listener)
    logger.info("listening url=%s", url)
    if ready is not None:
        ready(url)


def url_of(listener: socket.socket) -> str:
    """Where a bound socket answers."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _bound(host: str, port: int) -> socket.socket:
    try:
        info = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise Invalid(f"the address cannot be resolved. host=`{host}`") from error
    listener = socket.socket(info[0], socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(info[4])
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _refused(host, port, error) from error
    listener.setblocking(False)
    return listener


def _refused(host: str, port: int, error: OSError) -> Conflict | Invalid:
    if error.errno == errno.EADDRINUSE:
        return Conflict(f"another process listens there: stop it or choose another --port. port=`{port}`")
    reason = error.strerror or type(error).__name__
    return Invalid(f"cannot listen there: {reason.lower()}. address=`{host}:{port}`")
