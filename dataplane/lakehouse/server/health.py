"""Health: alive means that the process answers, ready that it can serve.

Liveness never depends on the store, because killing a process does not heal a bucket.
What this module does not do: decide who may ask; `lakehouse.server.routes` does.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import orjson

from lakehouse import __version__
from lakehouse.core.errors import LakehouseError
from lakehouse.runtime import Runtime
from lakehouse.server.http import Request, Response, json_response
from lakehouse.server.metrics import MEDIA_TYPE, Metrics
from lakehouse.settings import Role
from lakehouse.store.base import ObjectStore

PROBE_PREFIX = "_resources/ready-probe/"
"""Nothing is stored there: listing it costs one call and returns nothing."""
PROBE_S = 2.0
PROBE_EVERY_S = 1.0
"""Readiness may be asked by many; the store is asked once a second at most."""


class HealthApi:
    """Handlers named as the routes are."""

    def __init__(
        self,
        roles: tuple[Role, ...],
        store: ObjectStore | None,
        runtime: Runtime,
        metrics: Metrics,
        indexes: Callable[[], tuple[bool, str]],
        draining: Callable[[], bool],
        sql: Callable[[], Mapping[str, str]],
        openapi: Callable[[], Mapping[str, object]],
        routes: Callable[[], tuple[bool, str] | None] = lambda: None,
    ) -> None:
        self._roles = roles
        self._store = store
        self._runtime = runtime
        self._metrics = metrics
        self._indexes = indexes
        self._draining = draining
        self._sql = sql
        self._openapi = openapi
        self._routes = routes
        self._probed_at = 0.0
        self._store_says = ""

    async def health(self, request: Request) -> Response:
        """The old contract's answer, and what this process is."""
        roles = [role.value for role in self._roles]
        return json_response({"status": "ok", "version": __version__, "roles": roles})

    async def livez(self, request: Request) -> Response:
        """Whether the process answers."""
        return json_response({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """Whether every index was loaded and no end has begun; and, for people, whether the store answers and SQL runs.

        A store that is away makes nobody unready: reads go on, and taking every process out would end them.
        Neither does SQL that is off: searches need nothing of it.
        """
        loaded, detail = self._indexes()
        checks = {"indexes": detail or "ok"}
        if self._store is not None:
            checks["store"] = await self._probe(self._store)
        checks |= self._sql()
        routed, routes = self._routes() or (True, "")
        if routes:
            checks["routes"] = routes
        ready = loaded and routed and not self._draining()
        if self._draining():
            checks["process"] = "stopping"
        body = {"status": "ok" if ready else "not ready", "checks": checks}
        return json_response(body, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        """Prometheus' text format."""
        return Response(200, self._metrics.text(), MEDIA_TYPE)

    async def openapi(self, request: Request) -> Response:
        """The description of every route."""
        return Response(200, orjson.dumps(self._openapi()))

    async def _probe(self, store: ObjectStore) -> str:
        now = self._runtime.monotonic()
        if not self._store_says or now - self._probed_at >= PROBE_EVERY_S:
            self._probed_at = now
            self._store_says = await _asked(store.list(PROBE_PREFIX, limit=1))
        return self._store_says


async def _asked(call: Awaitable[object]) -> str:
    try:
        await asyncio.wait_for(call, PROBE_S)
    except TimeoutError:
        return f"no answer within {PROBE_S:g} s"
    except LakehouseError as error:
        return error.message
    return "ok"
