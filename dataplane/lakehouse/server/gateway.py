"""The gateway: passes a request on to the process that serves it: a role's, or a declared index's own pods.

Path and query go on byte for byte, with the request id, so that one id follows a request through every log.  An index
that the routing table names is served by its own Service or not at all; creating and deleting it is its resource's, and
so is all that changes a dataset of the table.  What it does not do: answer anything itself, but for the list of
indexes and what has to be refused.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from urllib.parse import quote

import msgspec

from lakehouse.core.errors import Invalid, Outcome, Unavailable
from lakehouse.remote.calls import refusal
from lakehouse.remote.peer_key import PeerKey
from lakehouse.runtime import Runtime
from lakehouse.server import forwarding, ingest_api, routing_watch
from lakehouse.server.catalog_api import BODY_BYTES_MAX as CATALOG_BODY_BYTES_MAX
from lakehouse.server.catalog_api import registration_of
from lakehouse.server.declared import (
    Declared,
    check_dataset_not_declared,
    check_not_declared,
    check_served,
    check_writable,
    not_ready,
)
from lakehouse.server.forwarding import Address, Body, Forwarder, Replayed, Streamed
from lakehouse.server.http import JSON, AnyResponse, Handler, Request, StreamedResponse, json_response
from lakehouse.server.json_body import CreateBody, Decoder, DeleteBody, MergeBody
from lakehouse.server.routes import Route
from lakehouse.server.routing_table import Place, Table
from lakehouse.server.routing_watch import Routes
from lakehouse.server.sql_api import BODY_BYTES_MAX as SQL_BODY_BYTES_MAX
from lakehouse.settings import PROXIED_ROLES, Role, Settings

REPLAYED_BYTES_MAX = 1 << 20
"""A body up to this size is kept until its answer begins; larger ones stream."""
KEYED = frozenset(("vectors.add", "vectors.delete"))
"""Writes that an idempotency key makes one however often they are sent; a client that gave none gets one here."""
TWICE = frozenset(
    (
        "storage.put",
        "storage.delete",
        "query.sql",
        "vectors.search",
        "vectors.search_batch",
        "vectors.scroll",
        "vectors.count",
        "vectors.recall",
        "vectors.add",
        "vectors.delete",
    )
)
"""What, besides GET, comes to the same when it is done twice; `vectors.delete` by ids only."""
_decode_create = Decoder(CreateBody)
_decode_merge = Decoder(MergeBody)
_decode_delete = Decoder(DeleteBody)


class Gateway:
    """Handlers for the routes whose role does not run in this process."""

    def __init__(self, settings: Settings, runtime: Runtime, peer_key: PeerKey) -> None:
        urls = {role: settings.role_url(role) for role in PROXIED_ROLES if role not in settings.roles}
        self._addresses = {role: Address(url, f"the {role} role") for role, url in urls.items() if url}
        self._body_bytes_max: Mapping[Role, int] = {
            Role.STORAGE: settings.storage_body_bytes_max,
            Role.CATALOG: CATALOG_BODY_BYTES_MAX,
            Role.INGEST: settings.ingest_body_bytes_max,
            Role.QUERY: SQL_BODY_BYTES_MAX,
            Role.VECTORS: settings.vectors_body_bytes_max,
        }
        self._forwarder = Forwarder(runtime, settings.proxy_connect_s, settings.proxy_timeout_s)
        self._peer_key = peer_key
        self._runtime = runtime
        self.routes: Routes | None = None
        """What is declared, and where its indexes are; None: nobody declares anything."""
        if settings.routes:
            self.routes = routing_watch.opened(settings.routes, runtime)

    def start(self) -> None:
        """Begin to follow the routing table."""
        if self.routes is not None:
            self.routes.start()

    async def close(self) -> None:
        if self.routes is not None:
            await self.routes.close()
        await self._forwarder.close()

    def handler(self, route: Route) -> Handler:
        """What answers a route here."""
        if self.routes is None:
            return partial(self._to_role, route)
        special: Mapping[str, Handler] = {
            "catalog.register": partial(self._register, route),
            "catalog.drop": partial(self._drop_dataset, route),
            "ingest.ingest": partial(self._ingest, route),
            "vectors.create": partial(self._create, route),
            "vectors.list": partial(self._list, route),
            "vectors.drop": partial(self._drop, route),
            "vectors.merge": partial(self._merge, route),
        }
        usual = self._to_index if route.role is Role.VECTORS else self._to_role
        return special.get(route.name) or partial(usual, route)

    def readiness(self) -> tuple[bool, str] | None:
        """Whether there is a table to go by, and what is to be said about it; None where none is asked for."""
        return None if self.routes is None else (self.routes.ready, self.routes.detail)

    # --- what is passed on as it is

    async def _to_role(self, route: Route, request: Request, body: Body | None = None) -> AnyResponse:
        assert route.role is not None
        return await self._passed(self._addresses[route.role], route, request, body)

    async def _to_index(self, route: Route, request: Request, body: Body | None = None) -> AnyResponse:
        place = self._declared(request.params["name"])
        if place is None:
            return await self._to_role(route, request, body)
        return await self._passed(_address(place), route, request, body)

    async def _passed(
        self, to: Address, route: Route, request: Request, body: Body | None
    ) -> StreamedResponse:
        body = body or await self._body(route, request)
        key: list[tuple[bytes, bytes]] = []
        if route.name in KEYED and b"idempotency-key" not in request.headers:
            key = [(b"idempotency-key", f"gateway-{self._runtime.uuid().hex}".encode())]
        twice = route.method == "GET" or (route.name in TWICE and not _by_filter(route, body))
        return await self._forwarder.send(
            to, request, forwarding.path_of(request), body, twice=twice, headers=key
        )

    async def _to_role_unless(
        self, route: Route, request: Request, refuse: Callable[[bytes], None]
    ) -> AnyResponse:
        """To the role, unless `refuse` raises for the body."""
        assert route.role is not None
        body = await request.body(self._body_bytes_max[route.role])
        with suppress(Invalid):  # the role says what is wrong with it
            refuse(body)
        return await self._to_role(route, request, Replayed(body))

    async def _body(self, route: Route, request: Request) -> Body:
        assert route.role is not None
        headers = request.headers
        if b"content-length" not in headers and b"transfer-encoding" not in headers:
            return Replayed(None)
        bytes_max = self._body_bytes_max[route.role]
        announced = request.check_body(bytes_max)
        if announced is not None and announced <= REPLAYED_BYTES_MAX:
            return Replayed(await request.body(bytes_max))
        return Streamed(request.stream(bytes_max))

    # --- declared indexes

    def _table(self) -> Table:
        """Raises `Unavailable` while nobody knows what is declared."""
        assert self.routes is not None
        if self.routes.table is None:
            raise Unavailable(
                f"this gateway does not know yet what is declared: {self.routes.detail}",
                outcome=Outcome.NOT_COMMITTED,
                retry_after_s=2.0,
            )
        return self.routes.table

    def _place(self, index: str) -> Place | None:
        """Where a declared index is, ready or not."""
        return self._table().indexes.get(index)

    def _declared(self, index: str) -> Place | None:
        """Raises `Unavailable` for a declared index that is not ready; the pool never answers for it."""
        place = self._place(index)
        if place is not None and not place.ready:
            declared = _as_declared(place)
            check_served(declared, index)
            raise not_ready(declared, index)
        return place

    def _check_not_declared(self, index: str) -> None:
        place = self._place(index)
        check_not_declared(None if place is None else _as_declared(place), index)

    async def _create(self, route: Route, request: Request) -> AnyResponse:
        return await self._to_role_unless(
            route, request, lambda body: self._check_not_declared(_decode_create(body).name)
        )

    async def _drop(self, route: Route, request: Request) -> AnyResponse:
        self._check_not_declared(request.params["name"])
        return await self._to_role(route, request)

    async def _list(self, route: Route, request: Request) -> AnyResponse:
        """The pool's indexes, and the declared ones that answer."""
        self._table()
        answer = await self._to_role(route, request)
        if answer.status != 200 or not isinstance(answer, StreamedResponse):
            return answer
        found = msgspec.json.decode(await _whole(answer), type=_Names).names
        table = self._table()
        names = sorted((set(found) - table.indexes.keys()) | table.ready_names)
        return json_response({"names": names, "count": len(names)})

    # --- declared datasets

    def declares_dataset(self, dataset: str) -> str | None:
        """The resource that declares a dataset.  Raises `Unavailable` while nobody knows what is declared."""
        return None if self.routes is None else self._table().declares_dataset(dataset)

    def _check_dataset(self, dataset: str) -> None:
        check_dataset_not_declared(self.declares_dataset(dataset), dataset)

    async def _ingest(self, route: Route, request: Request) -> AnyResponse:
        asked = request.query()
        self._check_dataset(asked.get("name", ""))  # before everything is sent
        if "name" in asked or request.media_type != ingest_api.FORM:
            return await self._to_role(route, request)
        form = ingest_api.checked_form(request, self._body_bytes_max[Role.INGEST], self._check_dataset)
        return await self._to_role(route, request, Streamed(form))

    async def _register(self, route: Route, request: Request) -> AnyResponse:
        return await self._to_role_unless(
            route, request, lambda body: self._check_dataset(registration_of(body).name)
        )

    async def _drop_dataset(self, route: Route, request: Request) -> AnyResponse:
        self._check_dataset(request.params["dataset"])
        return await self._to_role(route, request)

    # --- merging

    async def _merge(self, route: Route, request: Request) -> AnyResponse:
        """Source's pods do it; where dest is served by others, they are told where, as only this process knows."""
        source = request.params["name"]
        body = await request.body(self._body_bytes_max[Role.VECTORS])
        try:
            asked: MergeBody = _decode_merge(body)
        except Invalid:  # who has the source says what is wrong with it
            return await self._to_index(route, request, Replayed(body))
        places = [self._declared(source), self._declared(asked.dest) if asked.dest else None]
        if not any(places) or asked.dest in ("", source):
            return await self._to_index(route, request, Replayed(body))
        for place, name, changes in zip(
            places, (source, asked.dest), (bool(asked.clear_source), True), strict=True
        ):
            if place is not None and changes:
                check_writable(_as_declared(place), name)
        return await self._merge_between(request, places[0], places[1], asked)

    async def _merge_between(
        self, request: Request, source: Place | None, dest: Place | None, asked: MergeBody
    ) -> AnyResponse:
        pool = self._addresses[Role.VECTORS]
        if dest is None:  # who merges into it only finds that nobody serves it
            found = await self._forwarder.ask(
                pool, request, f"/v1/vectors/index/{quote(asked.dest, safe='')}".encode()
            )
            if found.status != 200:
                return found
            await _whole(found)
        told = {
            "dest": asked.dest,
            "dest_url": pool.url if dest is None else dest.shard_url or dest.url,
            "clear_source": bool(asked.clear_source),
            "replace": asked.on_conflict == "replace",
        }
        path = f"/internal/indexes/{quote(request.params['name'], safe='')}/merge"
        to = pool if source is None else _address(source)
        answer = await self._asked_as_peer(to, path, request, msgspec.json.encode(told))
        if answer.status != 200:
            return answer
        merged = msgspec.json.decode(await _whole(answer))
        position = str(merged.pop("position", "")).encode()
        return json_response(merged, 200, ((b"lakehouse-position", position),) if position else ())

    async def _asked_as_peer(self, to: Address, path: str, request: Request, data: bytes) -> StreamedResponse:
        """The answer to this process itself.  Raises `Unavailable` where it is refused: its caller cannot mend that."""
        plain = [(b"content-type", JSON), (b"content-length", b"%d" % len(data))]
        for key in self._peer_key.shown():
            headers = [*plain, (b"authorization", b"Bearer " + key.encode())] if key else plain
            answer = await self._forwarder.send(
                to, request, path.encode(), Replayed(data), twice=False, headers=headers
            )
            if answer.status != HTTPStatus.UNAUTHORIZED or not key:
                return answer
            refused = await _whole(answer)
        raise refusal(HTTPStatus.UNAUTHORIZED, refused)


async def _whole(answer: StreamedResponse) -> bytes:
    return b"".join([chunk async for chunk in answer.chunks])


class _Names(msgspec.Struct):
    names: list[str]


def _as_declared(place: Place) -> Declared:
    why = f"it follows dataset {place.follows}" if place.follows else "its dataset replaces its content"
    return Declared(place.resource, why if place.read_only else "", place.suspended)


def _address(place: Place) -> Address:
    return Address(place.url, f"the index's Service ({place.resource})")


def _by_filter(route: Route, body: Body) -> bool:
    """Whether a request deletes whatever matches when it arrives: done twice, that may be more."""
    if route.name != "vectors.delete":
        return False
    try:
        return isinstance(body, Streamed) or _decode_delete(body.content or b"").filter is not None
    except Invalid:
        return True
