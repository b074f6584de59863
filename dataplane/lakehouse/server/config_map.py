"""One key of one ConfigMap, followed through the Kubernetes API: listed once, then watched.

The token is read again for every call, because the kubelet replaces it; a watch goes on from where the last one ended,
and begins anew with a listing when the server has forgotten that place (410).  It needs the rights `list` and `watch`
on that one name.  What this module does not do: write anything, or know what the key holds.
"""

import logging
import os
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import httpx
import msgspec

from lakehouse.core.errors import Invalid
from lakehouse.runtime import Runtime

logger = logging.getLogger(__name__)

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where the kubelet mounts a pod's token and the authority of the API server."""
WATCH_S = 60
"""The server ends a watch after so long; the next one goes on from there, with a fresh token."""
SILENCE_S = 15
"""Beyond `WATCH_S`: a server that is gone says nothing at all."""
CONNECT_S = 5.0
BETWEEN_S = 0.5
"""From the end of one watch to the next; nothing is missed meanwhile."""
BACKOFF_S, BACKOFF_S_MAX = 0.5, 30.0


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """Who a pod is to the API server, and where that is."""

    url: str
    folder: Path = ACCOUNT

    @staticmethod
    def of_pod() -> "ServiceAccount":
        """As Kubernetes tells every pod.  Raises `Invalid` elsewhere."""
        host, port = (
            os.environ.get("KUBERNETES_SERVICE_HOST"),
            os.environ.get("KUBERNETES_SERVICE_PORT", "443"),
        )
        if not host:
            raise Invalid(
                "routes name a ConfigMap, and this process is not in a cluster: KUBERNETES_SERVICE_HOST is not set"
            )
        return ServiceAccount(f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}")

    def token(self) -> str:
        return (self.folder / "token").read_text().strip()

    def trust(self) -> ssl.SSLContext | bool:
        """Whom to trust as the API server; blocks on the disk."""
        return self.url.startswith("https:") and ssl.create_default_context(
            cafile=str(self.folder / "ca.crt")
        )


class _Metadata(msgspec.Struct, rename="camel"):
    resource_version: str = ""


class _Object(msgspec.Struct):
    """A ConfigMap, or the Status that an ERROR event carries."""

    metadata: _Metadata = msgspec.field(default_factory=_Metadata)
    data: dict[str, str] | None = None
    code: int = 0
    message: str = ""


class _List(msgspec.Struct):
    metadata: _Metadata
    items: list[_Object]


class _Event(msgspec.Struct):
    type: str
    object: _Object


class _ForgottenError(Exception):
    """The server no longer knows the place a watch should go on from."""


class _RefusedError(Exception):
    """The server answered, and not with what was asked for."""


class ConfigMap:
    """`lakehouse.server.routing_watch.Source` over one key of a ConfigMap."""

    def __init__(
        self, account: ServiceAccount, namespace: str, name: str, key: str, runtime: Runtime
    ) -> None:
        self._account = account
        self._name = f"{namespace}/{name}"
        self._path = f"/api/v1/namespaces/{namespace}/configmaps"
        self._selected = {"fieldSelector": f"metadata.name={name}"}
        self._key = key
        self._runtime = runtime
        self._failures = 0

    async def follow(self, learn: Callable[[bytes | str | None, str], None]) -> None:
        """Never returns; whatever goes wrong is told, and tried again with a growing pause."""
        while True:
            try:
                trust = await self._runtime.run_io(self._account.trust)  # it may have been replaced too
                timeout = httpx.Timeout(WATCH_S + SILENCE_S, connect=CONNECT_S)
                async with httpx.AsyncClient(
                    base_url=self._account.url, verify=trust, timeout=timeout, trust_env=False
                ) as client:
                    await self._followed(client, learn)
            except _ForgottenError:
                logger.info("listing again: the watch was too far behind. config_map=%s", self._name)
            except _RefusedError as error:
                learn(None, str(error))
            except (httpx.HTTPError, OSError, msgspec.MsgspecError) as error:
                learn(None, f"{type(error).__name__}: {error}".strip(": "))
            self._failures += 1
            await self._runtime.sleep(self._pause_s())

    def _pause_s(self) -> float:
        most = min(BACKOFF_S_MAX, BACKOFF_S * float(1 << min(self._failures - 1, 10)))
        return most * (0.5 + self._runtime.random().random() / 2)

    async def _followed(
        self, client: httpx.AsyncClient, learn: Callable[[bytes | str | None, str], None]
    ) -> None:
        """List, then watch until something goes wrong."""
        version = await self._listed(client, learn)
        self._failures = 0
        while True:
            async for event in self._events(client, version):
                if event.type == "ERROR":
                    if event.object.code == HTTPStatus.GONE:
                        raise _ForgottenError
                    raise _RefusedError(event.object.message)
                version = event.object.metadata.resource_version
                if event.type == "DELETED":
                    learn(None, f"the ConfigMap is gone. config_map=`{self._name}`")
                elif event.type != "BOOKMARK":
                    self._tell(event.object, learn)
                self._failures = 0
            await self._runtime.sleep(BETWEEN_S)

    async def _listed(
        self, client: httpx.AsyncClient, learn: Callable[[bytes | str | None, str], None]
    ) -> str:
        """Tell what is there; the place from which to watch."""
        answer = await client.get(self._path, params=self._selected, headers=await self._headers())
        _check(answer.status_code, answer.content)
        found = msgspec.json.decode(answer.content, type=_List)
        if found.items:
            self._tell(found.items[0], learn)
        else:
            learn(None, f"there is no such ConfigMap yet. config_map=`{self._name}`")
        return found.metadata.resource_version

    def _tell(self, found: _Object, learn: Callable[[bytes | str | None, str], None]) -> None:
        text = (found.data or {}).get(self._key)
        learn(
            text,
            ""
            if text is not None
            else f"the ConfigMap has no such key. config_map=`{self._name}` key=`{self._key}`",
        )

    async def _events(self, client: httpx.AsyncClient, version: str) -> AsyncIterator[_Event]:
        asked = {
            **self._selected,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_S),
        }
        headers = await self._headers()
        async with client.stream("GET", self._path, params=asked, headers=headers) as answer:
            if answer.status_code != HTTPStatus.OK:
                _check(answer.status_code, await answer.aread())
            async for line in answer.aiter_lines():
                if line:
                    yield msgspec.json.decode(line, type=_Event)

    async def _headers(self) -> dict[str, str]:
        token = await self._runtime.run_io(self._account.token)
        return {"authorization": f"Bearer {token}", "accept": "application/json"}


def _check(status: int, body: bytes) -> None:
    """Raises for an answer that is not 200."""
    if status == HTTPStatus.GONE:
        raise _ForgottenError
    if status != HTTPStatus.OK:
        try:
            said = msgspec.json.decode(body, type=_Object).message
        except msgspec.MsgspecError:
            said = ""
        raise _RefusedError(f"the API server answered {status}: {said}".rstrip(": "))
