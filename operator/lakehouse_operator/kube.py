"""The Kubernetes API as a few verbs on plain JSON objects, with errors that say what to do.

It speaks httpx with the credentials that kopf's own login finds: the project has httpx anyway, a client library would
bring a second HTTP stack and models of every kind, and the eight verbs used here are eight short functions.  A token
that the kubelet has renewed is read again when the old one is refused.  What this module does not do: watch (kopf
does), cache, or retry.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import httpx
import kopf
import orjson

from lakehouse.core.errors import (
    Conflict,
    Denied,
    Invalid,
    LakehouseError,
    NotFound,
    Outcome,
    TooLarge,
    Unavailable,
)

FIELD_MANAGER = "lakehouse-operator"
TIMEOUT = httpx.Timeout(10.0, connect=3.0)
"""An API server that takes longer is away as far as a turn is concerned; the next turn asks again."""
CONNECTIONS_MAX = 16
PAGE = 500
"""Objects per LIST, as kubectl asks for them."""

Body = dict[str, Any]
Login = Callable[[], kopf.ConnectionInfo]
"""Where the API server is and who we are, read anew at each call.  Raises `LakehouseError`."""


class Kind(str):
    """A kind's name, equal to the plain text, that also knows where the API serves it."""

    group: str
    version: str
    plural: str
    namespaced: bool

    def __new__(
        cls, name: str, plural: str, group: str = "", version: str = "v1", namespaced: bool = True
    ) -> "Kind":
        kind = super().__new__(cls, name)
        kind.group, kind.version, kind.plural, kind.namespaced = group, version, plural, namespaced
        return kind

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """Below the server's root; no namespace means all of them."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if namespace is not None and self.namespaced:
            parts += ["namespaces", namespace]
        return "/" + "/".join(
            quote(part, safe="") for part in [*parts, self.plural, name, subresource] if part
        )


_OURS = "lakehouse.agentview.dev"
DEPLOYMENT = Kind("Deployment", "deployments", "apps")
SERVICE = Kind("Service", "services")
JOB = Kind("Job", "jobs", "batch")
POD = Kind("Pod", "pods")
PDB = Kind("PodDisruptionBudget", "poddisruptionbudgets", "policy")
CONFIG_MAP = Kind("ConfigMap", "configmaps")
SECRET = Kind("Secret", "secrets")
LEASE = Kind("Lease", "leases", "coordination.k8s.io")
EVENT = Kind("Event", "events")
NAMESPACE = Kind("Namespace", "namespaces", namespaced=False)
VECTOR_INDEX = Kind("VectorIndex", "vectorindexes", _OURS, "v1alpha1")
DATASET = Kind("Dataset", "datasets", _OURS, "v1alpha1")
INDEX_SNAPSHOT = Kind("IndexSnapshot", "indexsnapshots", _OURS, "v1alpha1")
RESOURCES = (VECTOR_INDEX, DATASET, INDEX_SNAPSHOT)
"""What people declare."""
CHILDREN = (DEPLOYMENT, SERVICE, JOB, POD, PDB, CONFIG_MAP)
"""What is made for it, and watched by its label."""
KINDS: Mapping[str, Kind] = {kind: kind for kind in (*RESOURCES, *CHILDREN, SECRET, LEASE, EVENT, NAMESPACE)}


class Exists(Conflict):
    """An object of that name is there already."""


class Forbidden(Denied):
    """Our ServiceAccount may not do that; the message is the API server's and names the missing right."""


class Kube:
    """The verbs.  Every one raises `Forbidden`, `Invalid`, `Conflict` and `Unavailable`; more where it says so."""

    def __init__(self, login: Login) -> None:
        self._login = login
        self._info: kopf.ConnectionInfo | None = None
        self._client: httpx.AsyncClient | None = None
        self._refused: httpx.AsyncClient | None = None
        """The one before; closed with the next, for requests on it that have not ended."""
        self._lock = asyncio.Lock()

    async def close(self) -> None:
        clients, self._client, self._refused = [self._client, self._refused], None, None
        for client in clients:
            if client is not None:
                await client.aclose()

    # ------------------------------------------------------------------ verbs

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Body | None:
        """The object, None when it is not there."""
        try:
            return stripped(await self._ask("GET", kind.path(namespace, name)))
        except _Absent:
            return None

    async def list(
        self,
        kind: Kind,
        namespace: str | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        fields: Mapping[str, str] | None = None,
    ) -> list[Body]:
        """Every object of a kind, in a namespace or (None) in all, that has all the `labels` and `fields`."""
        params = {"limit": str(PAGE)}
        if labels:
            params["labelSelector"] = ",".join(f"{name}={value}" for name, value in labels.items())
        if fields:
            params["fieldSelector"] = ",".join(f"{name}={value}" for name, value in fields.items())
        found: list[Body] = []
        while True:
            page = await self._ask("GET", kind.path(namespace), params=params)
            # Items of built-in lists do not say what they are.
            found += [
                {"apiVersion": kind.api_version, "kind": str(kind), **stripped(item)}
                for item in page.get("items") or ()
            ]
            rest = page.get("metadata", {}).get("continue")
            if not rest:
                return found
            params["continue"] = rest

    async def apply(self, body: Body) -> Body:
        """Make the object say what `body` says; fields of others stay.  Nothing is written when it says so already."""
        metadata = body["metadata"]
        path = KINDS[body["kind"]].path(metadata.get("namespace"), metadata["name"])
        return stripped(
            await self._ask(
                "PATCH",
                path,
                body,
                content="application/apply-patch+yaml",
                params={"fieldManager": FIELD_MANAGER, "force": "true"},
            )
        )

    async def create(self, body: Body) -> Body:
        """Make a new object.  Raises `Exists`."""
        path = KINDS[body["kind"]].path(body["metadata"].get("namespace"))
        return stripped(await self._ask("POST", path, body, params={"fieldManager": FIELD_MANAGER}))

    async def replace(self, body: Body) -> Body:
        """Write the whole object, unless another version than `body`'s resourceVersion is there: `Conflict`.

        Raises `NotFound`.
        """
        metadata = body["metadata"]
        path = KINDS[body["kind"]].path(metadata.get("namespace"), metadata["name"])
        return stripped(await self._ask("PUT", path, body, params={"fieldManager": FIELD_MANAGER}))

    async def delete(self, kind: Kind, namespace: str | None, name: str, uid: str | None = None) -> None:
        """Ask for an object to go, its dependents after it; well when it, or the one of that `uid`, is gone."""
        options: Body = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        try:
            await self._ask("DELETE", kind.path(namespace, name), options)
        except _Absent:
            return
        except Conflict:
            if uid is None:
                raise

    async def patch_metadata(
        self, kind: Kind, namespace: str | None, name: str, patch: Mapping[str, Any]
    ) -> Body:
        """Merge `patch` into the metadata; with a `resourceVersion` in it, only into that version.

        Raises `NotFound`.
        """
        return await self.merge(kind, namespace, name, {"metadata": dict(patch)})

    async def merge(self, kind: Kind, namespace: str | None, name: str, patch: Body) -> Body:
        """Merge `patch` into the object; what is null in it is removed.  Raises `NotFound`."""
        path = kind.path(namespace, name)
        return stripped(await self._ask("PATCH", path, patch, content="application/merge-patch+json"))

    async def apply_status(
        self, kind: Kind, namespace: str, name: str, status: Mapping[str, Any], resource_version: str
    ) -> Body:
        """Make `status` the whole status of that version of the object, else `Conflict`.  Raises `NotFound`."""
        # Not server-side apply: what another writer left there would stay, and look like a change for ever.
        patch = [
            {"op": "replace", "path": "/metadata/resourceVersion", "value": resource_version},
            {"op": "add", "path": "/status", "value": status},
        ]
        path = kind.path(namespace, name, "status")
        return stripped(await self._ask("PATCH", path, patch, content="application/json-patch+json"))

    # -------------------------------------------------------------- transport

    async def _ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content: str = "application/json",
        params: Mapping[str, str] | None = None,
    ) -> Body:
        client = self._client or await self._connected(None)
        response = await _sent(client, method, path, body, content, params)
        if response.status_code == httpx.codes.UNAUTHORIZED:
            client = await self._connected(client)
            response = await _sent(client, method, path, body, content, params)
        if response.is_success:
            found: Body = _parsed(response)
            return found
        raise _error(method, path, response)

    async def _connected(self, refused: httpx.AsyncClient | None) -> httpx.AsyncClient:
        """A client of the newest credentials; the one that was refused is used no more."""
        async with self._lock:
            if self._client is not None and self._client is not refused:
                return self._client
            info = self._login()
            self._client = httpx.AsyncClient(
                base_url=info.server,
                verify=info.as_ssl_context() if info.server.startswith("https") else False,
                headers=info.as_http_headers(),
                timeout=TIMEOUT,
                limits=httpx.Limits(
                    max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX
                ),
                trust_env=False,
            )
            older, self._refused = self._refused, refused
            client = self._client
        if older is not None:
            await older.aclose()
        return client


def stripped(body: Mapping[str, Any]) -> Body:
    """Without `managedFields`: half of an object, and nobody here reads it."""
    metadata = body.get("metadata")
    if not isinstance(metadata, Mapping) or "managedFields" not in metadata:
        return dict(body)
    return {**body, "metadata": {name: value for name, value in metadata.items() if name != "managedFields"}}


class _Absent(NotFound):
    """The object is not there, which is not the same as its kind being unknown."""


async def _sent(
    client: httpx.AsyncClient,
    method: str,
    path: str,
    body: Any,
    content: str,
    params: Mapping[str, str] | None,
) -> httpx.Response:
    data = None if body is None else orjson.dumps(body)
    headers = {} if data is None else {"content-type": content}
    try:
        return await client.request(method, path, params=params, content=data, headers=headers)
    except (httpx.TransportError, RuntimeError) as error:  # RuntimeError: another task has closed the client
        outcome = Outcome.NOT_COMMITTED if method == "GET" else Outcome.UNKNOWN
        why = str(error) or type(error).__name__
        raise Unavailable(
            f"the API server does not answer: {why}. {method}=`{path}`", outcome=outcome
        ) from error


def _parsed(response: httpx.Response) -> Any:
    try:
        return orjson.loads(response.content)
    except orjson.JSONDecodeError as error:
        raise Unavailable(f"the API server's answer is no JSON. status=`{response.status_code}`") from error


def _error(method: str, path: str, response: httpx.Response) -> LakehouseError:
    """The API server's own message, as the error that tells what to do about it."""
    status, code = _status(response), response.status_code
    message = f"{status.get('message') or response.text[:200] or code}. {method}=`{path}`"
    if code == httpx.codes.NOT_FOUND:
        known = isinstance(status.get("details"), dict) and "name" in status["details"]
        return _Absent(message) if known else NotFound(f"the API server does not serve that: {message}")
    if code == httpx.codes.CONFLICT:
        return Exists(message) if status.get("reason") == "AlreadyExists" else Conflict(message)
    if code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return Forbidden(message, authenticated=code == httpx.codes.FORBIDDEN)
    if code == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
        return TooLarge(message)
    if code == httpx.codes.TOO_MANY_REQUESTS:
        wait_s = response.headers.get("retry-after", "")
        return Unavailable(
            message,
            outcome=Outcome.NOT_COMMITTED,
            retry_after_s=float(wait_s) if wait_s.isdigit() else 1.0,
        )
    return Invalid(message) if response.is_client_error else Unavailable(message)


def _status(response: httpx.Response) -> Mapping[str, Any]:
    try:
        found = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
