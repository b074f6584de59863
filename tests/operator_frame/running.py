"""The operator's frame around a plain domain, in this process, against a real API server; a namespace for each test."""

import asyncio
import contextlib
import functools
import gc
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from kube_api_server import ADMIN, KubeApiServer
from lakehouse.control import kinds
from lakehouse_operator.cache import Key
from lakehouse_operator.kube import KINDS, Body, Kube
from lakehouse_operator.main import Operator
from lakehouse_operator.parts import Parts
from lakehouse_operator.settings import Settings
from lakehouse_operator.watching import Watcher
from operator_frame.plain_domain import PlainDomain

SOON_S = 120.0
"""Far above what anything takes: a machine that is busy with other tests is no failure."""


async def until(check: Callable[[], Any], what: str = "", soon_s: float = SOON_S) -> Any:
    """The first true answer of `check`, which may be asynchronous."""
    deadline = time.monotonic() + soon_s
    while True:
        found = check()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"never: {what or check}"
        await asyncio.sleep(0.03)


def condition(body: Body | None, kind: str) -> dict[str, Any]:
    """A condition of a resource; empty when it has none of that type."""
    found: list[dict[str, Any]] = ((body or {}).get("status") or {}).get("conditions") or []
    return next((one for one in found if one["type"] == kind), {})


@dataclass
class Place:
    """A namespace, seen by an administrator."""

    kube: Kube
    namespace: str

    def key(self, kind: str, name: str) -> Key:
        return kind, self.namespace, name

    async def create(self, kind: str, name: str, spec: Any, **metadata: Any) -> Body:
        return await self.kube.create(
            {
                "apiVersion": kinds.API_VERSION,
                "kind": kind,
                "metadata": {"name": name, "namespace": self.namespace, **metadata},
                "spec": spec,
            }
        )

    async def index(
        self, name: str = "products", annotations: dict[str, str] | None = None, **spec: Any
    ) -> Body:
        spec = {"dimension": 3, **spec}
        return await self.create(kinds.VECTOR_INDEX, name, spec, annotations=annotations or {})

    async def dataset(self, name: str = "rows") -> Body:
        return await self.create(kinds.DATASET, name, {"sources": [{"uri": "s3://raw/rows.csv"}]})

    async def get(self, kind: str, name: str) -> Body | None:
        return await self.kube.get(KINDS[kind], self.namespace, name)

    async def has(self, kind: str, name: str, type_: str, status: str) -> Body:
        """The resource, as soon as it has a condition."""

        async def check() -> Body | None:
            body = await self.get(kind, name)
            return body if condition(body, type_).get("status") == status else None

        found: Body = await until(check, f"{kind} {name} {type_}={status}")
        return found

    async def gone(self, kind: str, name: str) -> None:
        """Wait until an object is not there any more."""

        async def check() -> bool:
            return await self.get(kind, name) is None

        await until(check, f"{kind}/{name} goes")

    async def delete(self, kind: str, name: str) -> None:
        """Delete an object, and wait until it is gone."""
        await self.kube.delete(KINDS[kind], self.namespace, name)
        await self.gone(kind, name)

    async def ready(self, name: str = "products") -> Body:
        return await self.has(kinds.VECTOR_INDEX, name, "Ready", "True")

    async def patch(self, kind: str, name: str, spec: dict[str, Any]) -> Body:
        path = KINDS[kind].path(self.namespace, name)
        return await self.kube._ask("PATCH", path, {"spec": spec}, content="application/merge-patch+json")

    async def annotate(self, kind: str, name: str, annotations: dict[str, str | None]) -> Body:
        return await self.kube.patch_metadata(KINDS[kind], self.namespace, name, {"annotations": annotations})

    async def events(self) -> list[Body]:
        return await self.kube.list(KINDS["Event"], self.namespace)


@contextlib.asynccontextmanager
async def place(server: KubeApiServer) -> AsyncIterator[Place]:
    """A new namespace."""
    kube = Kube(server.login)
    name = f"t-{uuid.uuid4().hex[:10]}"
    await kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    try:
        yield Place(kube, name)
    finally:
        await kube.close()


@pytest.fixture
async def where(kube_api: KubeApiServer) -> AsyncIterator[Place]:
    """A namespace of the test's own."""
    async with place(kube_api) as found:
        yield found


@dataclass
class Running:
    """An operator at work."""

    operator: Operator
    task: "asyncio.Task[None]"
    domains: list[PlainDomain] = field(default_factory=list)

    @property
    def domain(self) -> PlainDomain:
        return self.domains[-1]

    def more_than(self, key: Key, count: int) -> bool:
        """Whether a resource has been looked at more often than that."""
        return self.domain.observed.count(key) > count

    async def turns(self, key: Key, count: int = 1) -> None:
        """Have a resource looked at so often."""
        for _ in range(count):
            before = self.domain.observed.count(key)
            self.operator.controller.call(key)
            await until(functools.partial(self.more_than, key, before))
            await until(lambda: self.operator.controller.queue.idle)


def settings(where: Place, **more: Any) -> Settings:
    return Settings(
        **{
            "namespace": where.namespace,
            "cluster": "test",
            "health_port": 0,
            "health_host": "127.0.0.1",
            "identity": "replica",
            **more,
        }
    )


@contextlib.asynccontextmanager
async def running(
    server: KubeApiServer,
    where: Place,
    *,
    user: str = ADMIN,
    prepared: Callable[[PlainDomain], None] = lambda _: None,
    leads: bool = True,
    watcher: type[Watcher] = Watcher,
    **more: Any,
) -> AsyncIterator[Running]:
    """An operator for the namespace, until the end of the `with`; by then it has ended in order."""
    domains: list[PlainDomain] = []

    def domain(parts: Parts) -> PlainDomain:
        domains.append(PlainDomain(parts))
        prepared(domains[-1])
        return domains[-1]

    operator = Operator(settings(where, **more), domain=domain, login=lambda: server.login(user))
    if watcher is not Watcher:
        operator._watcher = watcher(
            settings(where, **more), operator.kube, operator.cache, operator.controller.call
        )
    task = asyncio.ensure_future(operator.run())
    found = Running(operator, task, domains)
    try:
        if leads:
            await until(lambda: operator._whole or task.done(), "leading")
        yield found
    finally:
        operator.stop()
        await asyncio.wait([task], timeout=SOON_S)
        assert task.done(), "the operator does not end"
        gc.collect()  # see OPERATOR_TESTS in tests/conftest.py
    task.result()
