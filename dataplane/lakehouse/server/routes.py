"""Every route, its role and the right it needs: one table that router, gateway, OpenAPI and tests read.

Paths are matched as they came over the wire and each segment is decoded once, so an id or key may hold any
character, a slash included.  What the table does not hold: the handlers; `lakehouse.server.app` joins them
by name.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from lakehouse.core.errors import Invalid
from lakehouse.settings import Right, Role

VERSION_PREFIX = "/v1"


@dataclass(frozen=True, slots=True)
class Route:
    """One method on one path.

    `{name}` is a segment; `{name...}` is all that follows, slashes and escapes kept.
    """

    method: str
    path: str
    name: str
    right: Right | None
    """None: open to everyone."""
    role: Role | None = None
    """None: every role answers it, at the root only."""
    internal: bool = False
    """For processes of one deployment and its operator: at the root only, never through a gateway, undocumented."""


def _vectors(method: str, path: str, name: str, right: Right) -> Route:
    return Route(method, f"/vectors/index{path}", f"vectors.{name}", right, Role.VECTORS)


ROUTES = (
    Route("GET", "/health", "health.health", None),
    Route("GET", "/livez", "health.livez", None),
    Route("GET", "/readyz", "health.readyz", None),
    Route("GET", "/metrics", "health.metrics", Right.READ),
    Route("GET", "/openapi.json", "health.openapi", Right.READ),
    Route("PUT", "/storage/put/{key...}", "storage.put", Right.WRITE, Role.STORAGE),
    Route("GET", "/storage/get/{key...}", "storage.get", Right.READ, Role.STORAGE),
    Route("DELETE", "/storage/delete/{key...}", "storage.delete", Right.WRITE, Role.STORAGE),
    Route("GET", "/storage/list", "storage.list", Right.READ, Role.STORAGE),
    Route("POST", "/catalog/register", "catalog.register", Right.WRITE, Role.CATALOG),
    Route("GET", "/catalog/manifest/{dataset}", "catalog.manifest", Right.READ, Role.CATALOG),
    Route("GET", "/catalog/list", "catalog.list", Right.READ, Role.CATALOG),
    Route("GET", "/catalog/versions/{dataset}", "catalog.versions", Right.READ, Role.CATALOG),
    Route("GET", "/catalog/rejects/{dataset}", "catalog.rejects", Right.READ, Role.CATALOG),
    Route("DELETE", "/catalog/dataset/{dataset}", "catalog.drop", Right.WRITE, Role.CATALOG),
    Route("POST", "/ingest", "ingest.ingest", Right.WRITE, Role.INGEST),
    Route("GET", "/ingest", "ingest.running", Right.READ, Role.INGEST),
    Route("POST", "/sql", "query.sql", Right.READ, Role.QUERY),
    Route("GET", "/sql", "query.list", Right.READ, Role.QUERY),
    Route("GET", "/sql/{id}", "query.get", Right.READ, Role.QUERY),
    Route("DELETE", "/sql/{id}", "query.cancel", Right.READ, Role.QUERY),
    Route("GET", "/resources", "resources.list", Right.READ),
    Route("POST", "/resources/diff", "resources.diff", Right.READ),
    Route("GET", "/resources/{kind}", "resources.of_kind", Right.READ),
    Route("GET", "/resources/{kind}/{name}", "resources.get", Right.READ),
    Route("GET", "/resources/{kind}/{name}/events", "resources.events", Right.READ),
    Route("PUT", "/resources/{kind}/{name}", "resources.apply", Right.ADMIN),
    Route("DELETE", "/resources/{kind}/{name}", "resources.delete", Right.ADMIN),
    _vectors("POST", "", "create", Right.WRITE),
    _vectors("GET", "", "list", Right.READ),
    _vectors("GET", "/{name}", "get", Right.READ),
    _vectors("DELETE", "/{name}", "drop", Right.WRITE),
    _vectors("POST", "/{name}/add", "add", Right.WRITE),
    _vectors("POST", "/{name}/search", "search", Right.READ),
    _vectors("POST", "/{name}/search/batch", "search_batch", Right.READ),
    _vectors("POST", "/{name}/merge", "merge", Right.WRITE),
    _vectors("POST", "/{name}/delete", "delete", Right.WRITE),
    _vectors("GET", "/{name}/items/{id}", "item", Right.READ),
    _vectors("POST", "/{name}/scroll", "scroll", Right.READ),
    _vectors("POST", "/{name}/count", "count", Right.READ),
    _vectors("GET", "/{name}/stats", "stats", Right.READ),
    _vectors("POST", "/{name}/recall", "recall", Right.READ),
    _vectors("POST", "/{name}/snapshot", "snapshot", Right.WRITE),
)


def _internal(method: str, path: str, name: str) -> Route:
    return Route(method, f"/internal{path}", f"internal.{name}", Right.ADMIN, Role.VECTORS, internal=True)


INTERNAL_ROUTES = (
    _internal("GET", "/state", "state"),
    _internal("POST", "/indexes/{name}/renew", "renew"),
    _internal("POST", "/indexes/{name}/ef-search", "ef_search"),
    _internal("POST", "/indexes/{name}/merge", "merge"),
    _internal("POST", "/indexes/{name}/shards/{life}/{shard}/{verb}", "shard"),
)


@dataclass(slots=True)
class Node:
    """One level of the tree of paths."""

    children: dict[str, "Node"] = field(default_factory=dict)
    any_child: "Node | None" = None
    param: str = ""
    rest: str = ""
    """Name of the parameter that takes all further segments."""
    routes: dict[str, Route] = field(default_factory=dict)


def route_tree(routes: Iterable[tuple[str, Route]]) -> Node:
    """The tree for (path, route) pairs."""
    root = Node()
    for path, route in routes:
        node = root
        for segment in path.split("/")[1:]:
            if segment.endswith("...}"):
                node.rest = segment[1:-4]
            elif segment.startswith("{"):
                node.param = segment[1:-1]
                node.any_child = node.any_child or Node()
                node = node.any_child
            else:
                node = node.children.setdefault(segment, Node())
        node.routes[route.method] = route
    return root


def find(root: Node, raw_path: str) -> tuple[Node | None, dict[str, str]]:
    """The node that `raw_path` (as sent, still escaped) leads to, and its parameters.  Raises `Invalid`."""
    node, params = root, {}
    segments = raw_path.split("/")
    for depth in range(1, len(segments)):
        segment = segments[depth]
        following = node.children.get(segment)
        if following is not None:
            node = following
        elif node.rest:
            params[node.rest] = "/".join(segments[depth:])
            return node, params
        elif node.any_child is not None and segment:
            params[node.param] = decoded(segment)
            node = node.any_child
        else:
            return None, {}
    return (node, params) if node.routes and not node.rest else (None, {})


def decoded(segment: str) -> str:
    """A percent-decoded segment.  Raises `Invalid` when that is not UTF-8."""
    if "%" not in segment and segment.isascii():
        return segment
    try:
        return unquote_to_bytes(segment.encode("latin-1")).decode()
    except UnicodeDecodeError as error:
        raise Invalid(f"a path segment is not percent-encoded UTF-8. segment=`{segment}`") from error
