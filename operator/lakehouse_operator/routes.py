"""The routing table: what the release's namespace declares, and where each index of it is served, for the gateway.

What is declared is in the table from its first look to its last, ready or not, so a declared index is never served from
anywhere else; one whose name belongs to another owner is not ours to route.  Of a dataset the name is enough: the pool
refuses nothing by itself, the gateway does.  What this module does not do: watch it (`lakehouse.server.routing_watch`).
"""

import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import Any

from lakehouse.control import conditions
from lakehouse.control.conditions import ConditionType
from lakehouse.control.kinds import DATASET, VECTOR_INDEX, Follow
from lakehouse_operator import names
from lakehouse_operator.kube import Body
from lakehouse_operator.parts import Parts

KEY = "routes.json"
VERSION = 1
CHECK_S = 30.0
"""Somebody may have edited or deleted the table since it was written."""


def table(
    namespace: str, indexes: Iterable[Mapping[str, Any]], datasets: Iterable[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The table of these VectorIndexes, by what their statuses say, and of these Datasets, by their names alone."""
    return {
        "version": VERSION,
        "namespace": namespace,
        "indexes": {
            _name(body): _place(body) for body in sorted(indexes, key=_name) if not _is_anothers(body)
        },
        "datasets": sorted(map(_name, datasets)),
    }


def _name(body: Mapping[str, Any]) -> str:
    return str(body["metadata"]["name"])


def _place(body: Mapping[str, Any]) -> dict[str, Any]:
    name, namespace = body["metadata"]["name"], body["metadata"]["namespace"]
    ready = conditions.holds(body.get("status") or {}, ConditionType.READY)
    spec = body.get("spec") or {}
    source = (spec.get("source") or {}).get("dataset") or {}
    follows = source.get("follow") == Follow.LATEST
    return {
        "url": names.url(name, namespace),
        "resource": f"{VECTOR_INDEX}/{namespace}/{name}",
        "ready": ready,
        "suspended": spec.get("suspend") is True,
        "read_only": follows,
        "follows": source.get("name", "") if follows else "",
        "shard_url": names.shard_url(name, namespace),
    }


def _is_anothers(body: Mapping[str, Any]) -> bool:
    accepted = conditions.find(body.get("status") or {}, ConditionType.ACCEPTED)
    return accepted.get("reason") == "PrefixTaken"


def config_map(namespace: str, name: str, routes: Mapping[str, Any]) -> Body:
    """The object that the gateway watches."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {names.NAME_LABEL: "lakehouse", names.MANAGED_BY_LABEL: names.MANAGED_BY},
        },
        "data": {KEY: json.dumps(routes, sort_keys=True, separators=(",", ":"))},
    }


class Routes:
    """Keeps the table written."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._written: Body | None = None
        self._written_s = 0.0
        self._turn = asyncio.Lock()

    async def write(self, coming: Body | None = None) -> None:
        """Bring it in line with what is declared and the statuses say, if that is news or was not checked for a while.
        `coming` is a VectorIndex as its status is about to say.

        Raises what the API server does, which writes nothing where nothing differs.
        """
        if self._parts.settings.routes_configmap:
            async with self._turn:
                await self._write(coming)

    async def _write(self, coming: Body | None) -> None:
        settings, resources = self._parts.settings, self._parts.cache.resources
        indexes = {_name(body): body for body in resources(VECTOR_INDEX, settings.namespace)}
        if coming is not None and coming["metadata"]["namespace"] == settings.namespace:
            indexes[_name(coming)] = coming
        found = table(
            settings.namespace,
            indexes.values(),
            resources(DATASET, settings.namespace),
        )
        body = config_map(settings.namespace, settings.routes_configmap, found)
        now_s = self._parts.runtime.monotonic()
        if body == self._written and now_s - self._written_s < CHECK_S:
            return
        await self._parts.kube.apply(body)
        self._written, self._written_s = body, now_s
