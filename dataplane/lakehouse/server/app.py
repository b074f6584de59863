"""The ASGI application: one table of routes, joined to the handlers of the roles that run in this process.

Each request is matched, its key checked, handled, answered, counted.  Whatever goes wrong becomes a problem
document in one place.  A role that runs elsewhere is reached through the gateway; the table and the rights
are the same.  What this module does not do: listen; `lakehouse.server.serve` does.
"""

import asyncio
import itertools
import logging
import re
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lakehouse.catalog import Catalog
from lakehouse.collection import Collection
from lakehouse.core.errors import Dropped, Invalid, LakehouseError, OtherLife
from lakehouse.engine_settings import EngineSettings
from lakehouse.index.predicate import Predicate
from lakehouse.indexes import Indexes
from lakehouse.placement import Neighbours, Pods
from lakehouse.remote.peer_key import PeerKey
from lakehouse.runtime import Runtime, SystemRuntime
from lakehouse.server import openapi, problem
from lakehouse.server.auth import ANYBODY, Caller, Guard
from lakehouse.server.catalog_api import CatalogApi
from lakehouse.server.declared import Controller, ControllerFactory, Declared, Parts
from lakehouse.server.gateway import Gateway
from lakehouse.server.health import HealthApi
from lakehouse.server.http import (
    AnyResponse,
    BodyBudget,
    ClientGoneError,
    Handler,
    Receive,
    Request,
    Response,
    Scope,
    Send,
)
from lakehouse.server.ingest_api import IngestApi
from lakehouse.server.internal_api import InternalApi
from lakehouse.server.kept_index import KeptIndex
from lakehouse.server.metrics import Metrics
from lakehouse.server.resources_api import NoResourcesApi, ResourcesApi
from lakehouse.server.routes import INTERNAL_ROUTES, ROUTES, VERSION_PREFIX, Node, Route, find, route_tree
from lakehouse.server.sql_api import SqlApi
from lakehouse.server.storage_api import StorageApi
from lakehouse.server.vectors_api import VectorsApi
from lakehouse.settings import Role, Settings
from lakehouse.sql.service import SqlService
from lakehouse.sql.vectors import VectorSearch
from lakehouse.store.base import ObjectStore
from lakehouse.store.local import LocalStore
from lakehouse.store.open import open_store
from lakehouse.store.reach import Reach, ReachedStore
from lakehouse.store.s3 import S3Settings
from lakehouse.store.wrappers import MeteredStore
from lakehouse.vector_sql import DatasetFilters, Filters, HttpVectorSearch, IndexVectorSearch, as_metadata

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("lakehouse.access")

LOCKED_ROLES = (Role.VECTORS, Role.CATALOG)
"""Roles that alone may write what is theirs; each holds the lock of its own name."""
WRITING_ROLES = (Role.STORAGE, Role.CATALOG, Role.INGEST, Role.VECTORS)
STORED_ROLES = (*WRITING_ROLES, Role.QUERY)
"""Roles that need the store; a process of roles that only read may have credentials for reading alone."""
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
LIVES_MAX, LIFE_PAUSE_S = 6, 0.1
"""Looks at the records, 1.5 s together, while processes do not agree on the life of an index."""
UNMATCHED = "none"
"""The route label of requests that match no route."""


class App:
    """The application of one process: `await start()`, serve, `await close()`."""

    def __init__(
        self,
        settings: Settings,
        runtime: Runtime | None = None,
        store: ObjectStore | None = None,
        controller: ControllerFactory | None = None,
    ) -> None:
        self.settings = settings
        self.runtime = runtime or SystemRuntime(settings.cpu_workers)
        self.metrics = Metrics()
        self.indexes: Indexes | None = None
        self.catalog: Catalog | None = None
        self.sql: SqlService | None = None
        self.controller: Controller | None = None
        self._filters: Filters = as_metadata
        self._remote: HttpVectorSearch | None = None
        self._new_controller = controller
        self._store = store
        self._reach: Reach | None = None
        self._scratch: Path | None = None
        self._own_scratch: TemporaryDirectory[str] | None = None
        self._peer_key = PeerKey.of(settings, self.runtime)
        self._guard = Guard(settings.keys, self._peer_key)
        self._budget = BodyBudget(settings.body_bytes_in_flight_max)
        self._gateway: Gateway | None = None
        self._loading: asyncio.Task[list[str]] | None = None
        self._kept: KeptIndex | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._neighbours: Neighbours | None = None
        self._internal: InternalApi | None = None
        self._draining = False
        self._tree = Node()
        self._handlers: dict[str, Handler] = {}
        self._id_prefix = self.runtime.uuid().hex[:16]
        self._ids = itertools.count(1)

    # --- life

    async def start(self) -> None:
        """Open the store and begin to load the indexes.  Raises what ends start-up."""
        roles = self.settings.roles
        if any(role in roles for role in STORED_ROLES) and self._store is None:
            self._store = await open_store(
                self.settings.data,
                self.runtime,
                locks=[role.value for role in LOCKED_ROLES if role in roles],
                s3=S3Settings.of(self.settings),
                probed=any(role in roles for role in WRITING_ROLES),
            )
        if self._store is not None:
            self._scratch = await self.runtime.run_io(self._scratch_of, self._store)
            if self.settings.index is not None:
                self._reach = Reach(self.runtime)
                self._store = ReachedStore(self._store, self.runtime, self._reach)
            self._store = MeteredStore(self._store, self.runtime, self.metrics)
        self._watching = self.runtime.spawn(self._peer_key.watch(), name="peer key")
        self._gateway = self._new_gateway()
        if self._gateway is not None:
            self._gateway.start()
        self._join(self._apis())
        if self.controller is not None:
            await self.controller.start()
        if self.indexes is not None:
            self.metrics.watch(self.indexes.all_opened)
            self._load(self.indexes)
        if self.sql is not None:
            self.metrics.watch_sql(self.sql)
            await self.sql.start()

    def _load(self, indexes: Indexes) -> None:
        if self.settings.index is None:
            self._loading = self.runtime.spawn(_load(indexes, self.runtime), name="load indexes")
        else:
            self._kept = KeptIndex(indexes, self.runtime, self.settings.index, self._reach)
            self._keeping = self.runtime.spawn(self._kept.run(), name="keep index")

    def drain(self) -> None:
        """Say that this process is not ready any more, and go on serving."""
        self._draining = True

    async def close(self) -> None:
        """Finish writes that were taken, then release the store."""
        if self.controller is not None:
            await self.controller.close()
        for task in (self._loading, self._keeping, self._watching):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self.sql is not None:
            await self.sql.close()
        if self._remote is not None:
            await self._remote.close()
        if self._gateway is not None:
            await self._gateway.close()
        if self._internal is not None:
            await self._internal.close()
        if self.indexes is not None:
            await self.indexes.close()
        if self._neighbours is not None:
            await self._neighbours.close()
        if self._store is not None:
            await self._store.close()
        if self._own_scratch is not None:
            await self.runtime.run_io(self._own_scratch.cleanup)
        self.runtime.close()

    def _scratch_of(self, store: ObjectStore) -> Path:
        """Where working files go: as set, else beside a local store's data, else a temporary directory."""
        if self.settings.scratch_dir is not None:
            self.settings.scratch_dir.mkdir(parents=True, exist_ok=True)
            return self.settings.scratch_dir
        if isinstance(store, LocalStore):
            return store.scratch()
        self._own_scratch = TemporaryDirectory(prefix="lakehouse-")
        return Path(self._own_scratch.name)

    def _new_gateway(self) -> Gateway | None:
        settings = self.settings
        if Role.GATEWAY not in settings.roles:
            return None
        return Gateway(settings, self.runtime, self._peer_key)

    def _apis(self) -> dict[str, object]:
        """The handlers of the roles that run here, by the first part of a route's name."""
        settings, roles, store = self.settings, self.settings.roles, self._store
        apis: dict[str, object] = {
            "health": HealthApi(
                roles,
                store,
                self.runtime,
                self.metrics,
                self._readiness,
                lambda: self._draining,
                self._sql_checks,
                openapi.document,
                lambda: None if self._gateway is None else self._gateway.readiness(),
            )
        }
        apis["resources"] = NoResourcesApi()
        if store is None:
            return apis
        if Role.STORAGE in roles:
            apis["storage"] = StorageApi(store, self.runtime, settings.storage_body_bytes_max, self._scratch)
        if Role.CATALOG in roles:
            self.catalog = Catalog(store, self.runtime)
            apis["catalog"] = CatalogApi(
                self.catalog, store, self.runtime, self._scratch, self._declares_dataset
            )
        if Role.INGEST in roles:
            ingested = self.catalog or Catalog(store, self.runtime)
            apis["ingest"] = IngestApi(
                ingested, store, self.runtime, settings, self._scratch, self._declares_dataset
            )
        if Role.VECTORS in roles:
            self._neighbours = Neighbours(self.runtime, self._peer_key)
            placement = self._placement(self._neighbours)
            engine = EngineSettings(scratch=self._scratch)
            self.indexes = Indexes(
                store, self.runtime, engine, placement=placement, read_only=self._is_read_only
            )
            apis["vectors"] = VectorsApi(
                self.indexes,
                self.runtime,
                settings.vectors_body_bytes_max,
                self._declared,
                self._filtered,
                settings.index,
            )
            apis["internal"] = self._internal = InternalApi(
                self.indexes,
                self.runtime,
                self._neighbours,
                self._readiness,
                self._declared,
                settings.vectors_body_bytes_max,
                settings.index,
                self._reach,
            )
            self._make_controller(store)
        if self.controller is not None:
            apis["resources"] = ResourcesApi(self.controller)
        if Role.QUERY in roles:
            apis["query"] = SqlApi(self._make_sql(store), self.runtime)
        return apis

    def _placement(self, neighbours: Neighbours) -> Pods | None:
        """None for a process that is alone: nothing of what follows costs it anything."""
        settings = self.settings
        if settings.peers_url is None and settings.shard is None:
            return None
        return Pods(
            neighbours,
            peers=settings.peers_url,
            index=settings.index,
            shard=settings.shard,
            shard_url=settings.shard_url,
        )

    def _make_sql(self, store: ObjectStore) -> SqlService:
        assert self._scratch is not None
        catalog = self.catalog or Catalog(store, self.runtime)
        self.sql = SqlService(
            catalog, store, self.runtime, self.settings, self._scratch, self._vector_search()
        )
        self._filters = DatasetFilters(catalog, self.sql)
        return self.sql

    def _vector_search(self) -> VectorSearch | None:
        """The indexes of this process, or those behind the vectors role's address."""
        settings = self.settings
        if self.indexes is not None:
            return IndexVectorSearch(self.indexes, self._filtered)
        if settings.vectors_url is None:
            return None
        self._remote = HttpVectorSearch(
            settings.vectors_url, settings.proxy_connect_s, settings.proxy_timeout_s
        )
        return self._remote

    async def _filtered(self, collection: Collection, text: str) -> str | Predicate:
        return await self._filters(collection, text)

    def _declared(self, index: str) -> Declared | None:
        settings = self.settings
        if settings.declared and index == settings.index:
            return Declared(settings.declared, settings.read_only)
        return None if self.controller is None else self.controller.declared(index)

    def _is_read_only(self, index: str) -> bool:
        declared = self._declared(index)
        return declared is not None and bool(declared.read_only)

    def _declares_dataset(self, dataset: str) -> str | None:
        if self.controller is not None:
            return self.controller.declares_dataset(dataset)
        return None if self._gateway is None else self._gateway.declares_dataset(dataset)

    def _make_controller(self, store: ObjectStore) -> None:
        if self._new_controller is None or self.indexes is None or self.catalog is None:
            return
        assert self._scratch is not None
        self.controller = self._new_controller(
            Parts(store, self.runtime, self.settings, self._scratch, self.indexes, self.catalog)
        )

    def _readiness(self) -> tuple[bool, str]:
        """Whether what is to be served is loaded, and what is to be said about that."""
        if self._draining:
            return False, "stopping"
        if self._kept is not None:
            return self._kept.ready, self._kept.detail
        if self._loading is None:
            return True, ""
        if not self._loading.done():
            return False, "loading"
        failed = self._loading.result()
        return True, f"could not be opened: {', '.join(failed)}" if failed else ""

    def _sql_checks(self) -> Mapping[str, str]:
        return {} if self.sql is None else self.sql.checks()

    def _join(self, apis: dict[str, object]) -> None:
        self._tree = route_tree(self._paths())
        for route in (*ROUTES, *INTERNAL_ROUTES):
            api, _, method = route.name.partition(".")
            if api in apis:
                self._handlers[route.name] = getattr(apis[api], method)
            elif route.internal:
                continue
            elif route.role is not None and self._gateway is not None:
                self._handlers[route.name] = self._gateway.handler(route)

    def _paths(self) -> Iterator[tuple[str, Route]]:
        """Under /v1 what runs here or behind the gateway; without it only what runs here."""
        roles = self.settings.roles
        for route in INTERNAL_ROUTES:
            if route.role in roles:
                yield route.path, route
        for route in ROUTES:
            if route.role is None or route.role in roles:
                yield route.path, route
            if route.role is None or route.role in roles or Role.GATEWAY in roles:
                yield VERSION_PREFIX + route.path, route

    # --- requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; the lifespan protocol is for servers other than ours."""
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = self.runtime.monotonic()
        headers = dict(scope["headers"])
        request = Request(scope, receive, headers, self._request_id(headers), self._budget)
        route: Route | None = None
        try:
            route, response = self._routed(request)
            if route is not None:
                request.caller = self._allowed(route, headers)
                response = await self._handled(self._handlers[route.name], request)
        except ClientGoneError:
            return
        except Exception as error:  # noqa: BLE001 - the one place where every failure becomes an answer
            response = problem.of_error(error, request.request_id)
        finally:
            request.release()
        sending = _closing(send) if self._draining else send
        await response.send(sending, request.request_id.encode())
        seconds = self.runtime.monotonic() - began
        self.metrics.request(UNMATCHED if route is None else route.name, response.status, seconds)
        if self.settings.access_log:
            _log_access(request, response.status, seconds)

    async def _handled(self, handler: Handler, request: Request) -> AnyResponse:
        """The handler's answer; once more if its index was dropped elsewhere, for the name may live again."""
        try:
            return await self._of_one_life(handler, request)
        except Invalid:  # judged by another life's dimension, perhaps
            name = request.params.get("name")
            if self.indexes is None or name is None or not await self._is_renewed(self.indexes, name):
                raise
            return await handler(request)

    async def _of_one_life(self, handler: Handler, request: Request) -> AnyResponse:
        """The handler's answer; again where the life it asked has ended, here or where another process serves it."""
        for attempt in range(1, LIVES_MAX):
            try:
                return await handler(request)
            except Dropped:  # the name may live again
                if attempt > 1:
                    await self.runtime.sleep(LIFE_PAUSE_S * attempt)
            except OtherLife:
                name = request.params.get("name")
                if self.indexes is None or name is None:
                    raise
                if not await self._is_renewed(self.indexes, name):  # it is the other one that has to look
                    await self.runtime.sleep(LIFE_PAUSE_S * attempt)
        return await handler(request)

    async def _is_renewed(self, indexes: Indexes, name: str) -> bool:
        try:
            return await indexes.renewed(name)
        except LakehouseError:
            return False

    def _request_id(self, headers: dict[bytes, bytes]) -> str:
        given = headers.get(b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given.decode("ascii")
        return f"{self._id_prefix}-{next(self._ids):x}"

    def _routed(self, request: Request) -> tuple[Route | None, AnyResponse]:
        """The route; or, when there is none, the answer that says so."""
        scope = request.scope
        raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
        node, request.params = find(self._tree, raw_path.decode("latin-1"))
        if node is None:
            path = raw_path.decode("ascii", "backslashreplace")
            return None, problem.response(404, f"no such route. path=`{path}`", request.request_id)
        method = "GET" if scope["method"] == "HEAD" else scope["method"]  # uvicorn leaves the body out
        route = node.routes.get(method)
        if route is None:
            allowed = ", ".join(sorted(node.routes))
            return None, problem.response(
                405,
                f"this route does not take {scope['method']}. allow=`{allowed}`",
                request.request_id,
                headers=((b"allow", allowed.encode()),),
            )
        return route, _NOTHING

    def _allowed(self, route: Route, headers: dict[bytes, bytes]) -> Caller:
        if route.right is None:
            return ANYBODY
        return self._guard.check(headers.get(b"authorization"), route.right, internal=route.internal)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.start()
        except LakehouseError as error:
            await send({"type": "lifespan.startup.failed", "message": error.message})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})


_NOTHING = Response(204)


def _closing(send: Send) -> Send:
    """Answers that end their connection, so that the next request goes where this process is not chosen any more."""

    async def sent(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"connection", b"close")]
        await send(message)

    return sent


LOAD_AGAIN_S = 2.0
"""Between attempts to list the indexes at start while the store is away."""


def create_app(
    settings: Settings,
    runtime: Runtime | None = None,
    store: ObjectStore | None = None,
    controller: ControllerFactory | None = None,
) -> App:
    """The ASGI application of a process with these settings; `store` overrides the one they name.

    `controller` makes what keeps declared resources; without it their routes say that nobody does.
    """
    return App(settings, runtime, store, controller)


async def _load(indexes: Indexes, runtime: Runtime) -> list[str]:
    """Open every index, so that no request waits for a replay; one that cannot be opened stops no other."""
    while True:
        try:
            failed = await indexes.open_all()
        except LakehouseError as error:
            logger.error("indexes cannot be listed: trying again. error=%s", error)
            await runtime.sleep(LOAD_AGAIN_S)
            continue
        for name in failed:
            logger.error("index not loaded index=%s", name)
        return failed


def _log_access(request: Request, status: int, seconds: float) -> None:
    access_logger.info(
        "request method=%s path=%s status=%d seconds=%.4f request_id=%s",
        request.scope["method"],
        request.scope["path"],
        status,
        seconds,
        request.request_id,
    )
