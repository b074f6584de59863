"""A domain without buckets and pods: what it observes is what it was told to do, kept in memory.

The frame around it is the operator's own.  As a program (`python plain_domain.py`) it runs that frame until SIGTERM.
"""

import sys
from dataclasses import dataclass, field
from typing import Any

from lakehouse.control import kinds
from lakehouse.control.plan import Action, CreateIndex, Ingest, SetEfSearch
from lakehouse.control.state import (
    REACHABLE,
    DatasetVersion,
    LastRefresh,
    Life,
    ObservedDataset,
    ObservedIndex,
    ObservedIndexSnapshot,
    ObservedSource,
    RefreshResult,
    Resource,
)
from lakehouse_operator.cache import MANAGED_BY, Key
from lakehouse_operator.kube import VECTOR_INDEX, Body
from lakehouse_operator.main import run
from lakehouse_operator.parts import Acting, Observing, Parts


@dataclass
class PlainDomain:
    """Observer, actor and world in one."""

    parts: Parts
    lives: dict[Key, Life] = field(default_factory=dict)
    observed: list[Key] = field(default_factory=list)
    """Every observation, in order."""
    acted: list[tuple[Key, str]] = field(default_factory=list)
    items: dict[Key, int] = field(default_factory=dict)
    polled: list[Key] = field(default_factory=list)
    answers: dict[Key, bool] = field(default_factory=dict)
    """What the next poll of a key says."""
    routed: int = 0
    ahead: list[tuple[Body, Body | None]] = field(default_factory=list)
    """An index as its status was about to say, and as the cluster had it then."""
    makes_children: bool = False
    closed: bool = False

    @property
    def observer(self) -> Observing:
        return self

    @property
    def actor(self) -> Acting:
        return self

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        self.closed = True

    async def observe(self, key: Key, resource: Resource[Any]) -> Any:
        self.observed.append(key)
        shared: dict[str, Any] = {
            "work": self.parts.workshop.running(key),
            "failures": self.parts.workshop.failures(key),
        }
        if key[0] == kinds.DATASET:
            refresh = self.parts.workshop.refreshes.get(key)
            current = None if refresh is None else DatasetVersion(1, "m", "f", 1, 1, 1, refresh.completed_at)
            versions = () if refresh is None else (1,)
            return ObservedDataset(REACHABLE, current, versions=versions, last_refresh=refresh, **shared)
        if key[0] == kinds.INDEX_SNAPSHOT:
            return ObservedIndexSnapshot(REACHABLE, **shared)
        life = self.lives.get(key)
        return ObservedIndex(
            identity=f"{self.parts.identity}/{key[1]}/{key[2]}",
            store=REACHABLE,
            life=life,
            ef_search=None if life is None else life.params.ef_search,
            items=self.items.get(key, 0),
            position="0:0",
            serving=life is not None,
            replicas=resource.spec.replicas,
            ready_replicas=resource.spec.replicas,
            source=ObservedSource(1, {}) if resource.spec.source else None,
            **shared,
        )

    async def children(self, resource: Resource[Any], observed: Any) -> None:
        if self.makes_children and resource.kind == kinds.VECTOR_INDEX:
            await self.parts.kube.apply(service(resource))

    async def apply(self, action: Action, resource: Resource[Any]) -> None:
        key = (resource.kind, str(resource.meta.namespace), resource.meta.name)
        self.acted.append((key, action.act.value))
        if isinstance(action, CreateIndex):
            self.lives[key] = Life(action.params, action.shards, action.owner)
        if isinstance(action, Ingest):
            now, result = self.parts.runtime.now(), RefreshResult.PUBLISHED
            self.parts.workshop.refreshes[key] = LastRefresh(action.key, now, now, result, 1)
        if isinstance(action, SetEfSearch):
            life = self.lives[key]
            params = resource.spec.params(resource.meta.name)
            self.lives[key] = Life(params, life.shards, life.owner)

    async def forget(self, key: Key) -> None:
        self.lives.pop(key, None)

    async def poll(self, key: Key) -> bool:
        self.polled.append(key)
        return self.answers.pop(key, False)

    async def routes(self, coming: Body | None = None) -> None:
        self.routed += 1
        if coming is not None:
            meta = coming["metadata"]
            there = self.parts.cache.resource((VECTOR_INDEX, meta["namespace"], meta["name"]))
            self.ahead.append((coming, there))


def service(resource: Resource[Any]) -> Body:
    """A child."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": resource.meta.name,
            "namespace": resource.meta.namespace,
            "labels": {**MANAGED_BY, "lakehouse.agentview.dev/index": resource.meta.name},
            "ownerReferences": [
                {
                    "apiVersion": kinds.API_VERSION,
                    "kind": resource.kind,
                    "name": resource.meta.name,
                    "uid": resource.meta.uid,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "spec": {"ports": [{"name": "http", "port": 3110}], "clusterIP": "None"},
    }


if __name__ == "__main__":
    sys.exit(run(PlainDomain))
