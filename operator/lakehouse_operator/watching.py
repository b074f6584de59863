"""kopf watches; every event goes into the cache, and whoever it concerns into the queue: nothing else.

Only `on.event` handlers: kopf then writes neither annotations nor finalizers, and its own retries, timers and state
do not exist.  A relist every few minutes puts right what a watch has missed, such as a deletion while the connection
was down.  What this module does not do: decide anything about an event.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Set
from typing import Any

import kopf

from lakehouse.core.errors import Denied, LakehouseError
from lakehouse_operator.cache import MANAGED_BY, Cache, Key, key_of
from lakehouse_operator.kube import CHILDREN, JOB, RESOURCES, Kind, Kube, Login
from lakehouse_operator.settings import Settings

logger = logging.getLogger(__name__)

IDENTITY: Any = "lakehouse-operator"
"""For kopf's peering, which is off; else kopf looks its user up, and the user of an image has no entry."""

SERVER_TIMEOUT_S = 300
"""A watch ends so often by itself: a load balancer that has forgotten it costs five minutes at most."""
CLIENT_TIMEOUT_S = 310
CONNECT_TIMEOUT_S = 5
REQUEST_TIMEOUT_S = 10
LOGIN_AGAIN_S = 1.0
BACKOFFS_S = (0.5, 1.0, 2.0, 3.0, 5.0, *([10.0] * 60))
"""An API server that is away for ten minutes is waited for; then the process ends, and its successor waits."""
SELECTOR = ",".join(f"{name}={value}" for name, value in MANAGED_BY.items())

Call = Callable[[Key], None]


class NamespacesChanged(LakehouseError):
    """Other namespaces may be watched than are: begin anew."""


class Watcher:
    """Keeps a cache what the API server has, and calls the keys of those concerned."""

    def __init__(self, settings: Settings, kube: Kube, cache: Cache, call: Call) -> None:
        self._settings = settings
        self._kube = kube
        self._cache = cache
        self._call = call
        self.lost: Set[str] = frozenset()
        """Namespaces that are not watched, as they may not be: they were deleted, and our Role with them."""

    # ---------------------------------------------------------------- listing

    async def list_all(self) -> frozenset[str]:
        """Bring the cache in line with a list of everything; the namespaces where that is not allowed.

        Raises what `Kube.list` raises, and `Denied` when it is allowed in none.
        """
        namespaces, lost = self._settings.namespaces or (None,), set()
        for namespace in namespaces:
            try:
                await self._list(namespace)
            except Denied as error:
                lost.add(namespace)
                if len(lost) == len(namespaces):
                    raise
                if namespace not in self.lost:
                    logger.warning("a namespace may not be listed. namespace=%s error=%s", namespace, error)
        return frozenset(one for one in lost if one is not None)

    async def _list(self, namespace: str | None) -> None:
        for kind in (*RESOURCES, *CHILDREN):
            labels = None if kind in RESOURCES else MANAGED_BY
            known = {key for key in self._cache.keys((kind,)) if namespace in (None, key[1])}
            listed = await self._kube.list(kind, namespace, labels)
            self._seen(kind, known, listed)

    async def check_namespaces(self) -> None:
        """Find out whether a namespace has gone, with our Role there, or has come.

        One that still has resources that may be listed is kept: who knows their buckets may yet clean up.  Raises
        `NamespacesChanged`, and what `Kube.list` raises.
        """
        for namespace in self._settings.namespaces:
            try:
                await self._kube.list(JOB, namespace, MANAGED_BY)
            except Denied:
                if namespace in self.lost or await self._has_resources(namespace):
                    continue
                raise NamespacesChanged(f"a namespace may not be watched any more: {namespace}") from None
            if namespace in self.lost:
                raise NamespacesChanged(f"a namespace may be watched now: {namespace}")

    async def _has_resources(self, namespace: str) -> bool:
        try:
            for kind in RESOURCES:
                known = {key for key in self._cache.keys((kind,)) if key[1] == namespace}
                self._seen(kind, known, await self._kube.list(kind, namespace))
        except Denied:
            return False
        return any(key[1] == namespace for key in self._cache.keys(RESOURCES))

    def _seen(self, kind: Kind, known: Iterable[Key], listed: Iterable[dict[str, Any]]) -> None:
        there = set()
        for body in listed:
            there.add(key_of(body))
            self.put(body)
        for key in set(known) - there:
            logger.info("gone, and the watch did not tell. kind=%s name=%s/%s", kind, *key[1:])
            self.remove(key)

    # ----------------------------------------------------------------- events

    def put(self, body: dict[str, Any]) -> None:
        """An object that is there: those concerned are called if that is news."""
        if not self._cache.is_news(
            body
        ):  # as most of a list is: to know who is concerned takes a look at all
            return
        key = key_of(body)
        before = self._cache.concerned(key) if self._cache.resource(key) is not None else set()
        self._cache.put(body)
        self._called(key, before | self._cache.concerned(key))

    def remove(self, key: Key, uid: str = "") -> None:
        """An object that is gone."""
        concerned = self._cache.concerned(key)
        if self._cache.remove(key, uid):
            self._called(key, concerned)

    def _called(self, key: Key, concerned: Iterable[Key]) -> None:
        if key[0] in RESOURCES:
            self._call(key)
        for other in concerned:
            self._call(other)

    async def _event(self, event: Any, kind: Kind) -> None:
        body = {**event["object"], "apiVersion": kind.api_version, "kind": str(kind)}
        if event["type"] == "DELETED":
            self.remove(key_of(body), body["metadata"].get("uid", ""))
        else:
            self.put(body)

    # --------------------------------------------------------------- watching

    async def run(self, login: Login, begun: Callable[[], None] = lambda: None) -> None:
        """Watch until cancelled; `begun` is called when kopf has taken the signal handlers.  Raises what kopf cannot
        get over.

        kopf ends every task that was begun after it: begin yours before, and end what must end in order before this.
        """
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry, errors=kopf.ErrorsMode.TEMPORARY, backoff=LOGIN_AGAIN_S)
        async def connection(**_: Any) -> kopf.ConnectionInfo:
            return login()

        for kind in (*RESOURCES, *CHILDREN):
            self._register(registry, kind)
        others = asyncio.all_tasks()
        tasks = await kopf.spawn_tasks(
            registry=registry,
            settings=configuration(),
            standalone=True,
            identity=IDENTITY,
            clusterwide=self._settings.clusterwide,
            namespaces=[one for one in self._settings.namespaces if one not in self.lost],
        )
        begun()
        await kopf.run_tasks(tasks, ignored=others)

    def _register(self, registry: kopf.OperatorRegistry, kind: Kind) -> None:
        @kopf.on.event(
            group=kind.group,
            version=kind.version,
            plural=kind.plural,
            id=f"see {kind.plural}",
            registry=registry,
        )
        async def see(event: Any, **_: Any) -> None:
            await self._event(event, kind)


def configuration() -> kopf.OperatorSettings:
    """kopf as a watcher: no events of its own, no discovery, labelled children only, and time limits everywhere."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.watching.server_timeout = SERVER_TIMEOUT_S
    settings.watching.client_timeout = CLIENT_TIMEOUT_S
    settings.watching.connect_timeout = CONNECT_TIMEOUT_S
    settings.networking.request_timeout = REQUEST_TIMEOUT_S
    settings.networking.error_backoffs = BACKOFFS_S
    for kind in CHILDREN:
        settings.watching.label_selectors[kind.group, kind.version, kind.plural] = SELECTOR
    return settings
