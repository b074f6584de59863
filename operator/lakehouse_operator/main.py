"""The operator's life: stand by, lead, watch, and end in order.

The Lease comes first, then a list of everything, then turns and watches; the process ends with 0 when it was asked to,
and with 1 when the Lease or the watches are lost, for its successor to begin anew.  What this module does not do:
anything to a resource.
"""

import asyncio
import logging
import signal
import sys
import threading
from collections.abc import Callable

from lakehouse.core.errors import Invalid, LakehouseError, Unavailable
from lakehouse.runtime import Runtime, SystemRuntime
from lakehouse_operator import identity, logs
from lakehouse_operator.cache import Cache
from lakehouse_operator.converge import Controller
from lakehouse_operator.health import Health, stuck
from lakehouse_operator.kube import Kube, Login
from lakehouse_operator.lease import Lease
from lakehouse_operator.leaving import Leaving
from lakehouse_operator.login import login
from lakehouse_operator.metrics import Metrics
from lakehouse_operator.parts import Domain, Parts
from lakehouse_operator.settings import Settings, load
from lakehouse_operator.watching import NamespacesChanged, Watcher

logger = logging.getLogger(__name__)

LIST_AGAIN_S = 2.0
"""Between attempts to list everything, while the definitions are not there or the API server is away."""
NAMESPACES_S = 30.0
"""Between looks whether the namespaces are still there: sooner than a watch asks for its rights again."""
CANCEL_AGAIN_S = 3.0
"""A cancellation may get lost; it is repeated."""


class Operator:
    """One replica, from its start to its end."""

    def __init__(
        self,
        settings: Settings,
        *,
        domain: Callable[[Parts], Domain],
        login: Login = login,
        runtime: Runtime | None = None,
    ) -> None:
        self._settings = settings
        self._make = domain
        self._login = login
        self._runtime = runtime or SystemRuntime()
        self.kube = Kube(login)
        self.cache = Cache()
        self.metrics = Metrics(self._runtime, self.cache)
        self.controller = Controller(settings, self._runtime, self.kube, self.cache, self.metrics)
        self.metrics.watch_queue(lambda: self.controller.queue.depth, lambda: self.controller.queue.oldest_s)
        self.lease = Lease(
            self.kube, self._runtime, settings.namespace, settings.lease_name, settings.identity
        )
        self.health = Health(
            settings.health_host, settings.health_port, self._alive, self._ready, self.metrics.exposition
        )
        self._watcher = Watcher(settings, self.kube, self.cache, self.controller.call)
        self._leaving = Leaving(
            self.kube, self.cache, self._runtime, settings.namespace, lambda body: self._watcher.put(body)
        )
        self._stop = asyncio.Event()
        self._whole = False

    # ------------------------------------------------------------------- life

    def stop(self) -> None:
        """Ask for the end."""
        self._stop.set()

    async def run(self) -> None:
        """Until asked to stop.  Raises `LakehouseError` when the lease or the watches are lost, and `OSError`."""
        self._catch_signals()
        spawn = self._runtime.spawn
        await self.health.start()
        logger.info("started. namespaces=%s", ",".join(self._settings.namespaces) or "*")
        asked = spawn(self._asked(), name="stop")
        try:
            await self._first(spawn(self.lease.acquire(), name="acquire lease"), asked)
            if self.lease.held and asked.cancelled():
                self.metrics.leader.set(1)
                asked = spawn(self._asked(), name="stop")
                # In the order they are ended: nobody may lead before everything here has stopped.
                await self._first(
                    spawn(self._lead(), name="lead"), spawn(self.lease.keep(), name="keep lease"), asked
                )
        finally:
            self.metrics.leader.set(0)
            await self.lease.release()
            await self.health.close()
            await self.kube.close()
            self._runtime.close()
            logger.info("ended")

    async def _first(self, *tasks: "asyncio.Task[None]") -> None:
        """Wait until one task ends, then end all, one after the other.  Raises what the first one raised."""
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            await _ended(task)
        for task in done:
            task.result()

    def _catch_signals(self) -> None:
        if threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            for one in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(one, self._stop.set)

    # ---------------------------------------------------------------- leading

    async def _lead(self) -> None:
        """Everything that a leader does, until it is cancelled.  Raises what the watches raise."""
        spawn = self._runtime.spawn
        domain = self._make(await self._parts())
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._list()
            await domain.start()
            self.controller.start(domain)
            self._whole = True
            tasks = [
                spawn(self._relist(), name="relist"),
                spawn(self._check_namespaces(), name="namespaces"),
                # Last: kopf ends what was begun after it. Its signal handlers give way to ours.
                spawn(self._watcher.run(self._login, self._catch_signals), name="watch"),
            ]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
            raise Unavailable("the watches have ended: ending, to begin anew")
        finally:
            self._whole = False
            await self.controller.close()
            await domain.close()
            for task in tasks:
                await _ended(task)

    async def _asked(self) -> None:
        """Until we may end: asked to, and needed no more where we live."""
        await self._stop.wait()
        if self._settings.serves(self._settings.namespace):
            await self._leaving.leave()

    async def _parts(self) -> Parts:
        return Parts(
            self._settings,
            self._runtime,
            self.kube,
            self.cache,
            self.controller.workshop,
            await identity.of_cluster(self.kube, self._runtime, self._settings),
            self.controller.call,
        )

    async def _list(self) -> None:
        """Fill the cache, however long the definitions or the API server take to be there."""
        told = ""
        while True:
            try:
                self._watcher.lost = await self._watcher.list_all()
            except LakehouseError as error:
                if error.message != told:
                    logger.warning("cannot list what is there: trying again. error=%s", error)
                told = error.message
                await self._runtime.sleep(LIST_AGAIN_S)
            else:
                return

    async def _relist(self) -> None:
        while True:
            await self._runtime.sleep(self._settings.resync_s)
            try:
                await self._watcher.list_all()
            except LakehouseError as error:
                logger.warning("cannot list what is there: later. error=%s", error)

    async def _check_namespaces(self) -> None:
        while len(self._settings.namespaces) > 1:
            await self._runtime.sleep(NAMESPACES_S)
            try:
                await self._watcher.check_namespaces()
            except NamespacesChanged:
                if not self._stop.is_set():  # who ends does not begin anew
                    raise
            except LakehouseError as error:
                logger.warning("cannot look at namespaces: later. error=%s", error)
        await asyncio.Event().wait()

    # ----------------------------------------------------------------- health

    def _alive(self) -> str:
        queue = self.controller.queue
        return stuck(queue.oldest_s, queue.longest_turn_s)

    def _ready(self) -> str:
        if self.lease.held:
            return "" if self._whole else "leading, but not everything has been listed yet"
        return "" if self.lease.answered else "the API server has not answered yet"


async def _ended(task: "asyncio.Task[None]") -> None:
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=CANCEL_AGAIN_S)


def run(domain: Callable[[Parts], Domain]) -> int:
    """The console script: the exit status."""
    try:
        settings = load()
    except Invalid as error:
        sys.stderr.write(f"lakehouse-operator: {error}\n")
        return 2
    logs.set_up(settings.log_format, settings.log_level)
    try:
        login()  # nobody who has no credentials now gets them by waiting
        while True:
            try:
                asyncio.run(Operator(settings, domain=domain).run())
            except NamespacesChanged as change:
                logger.info("beginning anew: %s", change)
            else:
                return 0
    except (LakehouseError, OSError) as error:
        logger.error("ending: %s", error)
        return 1
