"""The whole operator, in this process, over a real API server and a real MinIO; a namespace for each test.

Nobody runs pods here: a test that needs one is the kubelet itself.
"""

import asyncio
import base64
import contextlib
import functools
import gc
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from kube_api_server import ADMIN, KubeApiServer
from lakehouse.runtime import SystemRuntime
from lakehouse.store.base import ObjectStore
from lakehouse.store.s3 import S3Store
from lakehouse_operator.cache import Key
from lakehouse_operator.domain import Domain
from lakehouse_operator.kube import KINDS, Body
from lakehouse_operator.main import Operator
from lakehouse_operator.parts import Parts
from lakehouse_operator.settings import Settings
from minio_server import MinioServer
from operator_frame import running
from operator_frame.running import Place, condition

SECRET = "lake-s3"
SOON_S = 180.0
"""Processes start on a machine that is busy with other tests; no test passes or fails by time."""
until = functools.partial(running.until, soon_s=SOON_S)
IMAGE = "registry.example/lakehouse:1"


def installed(where: Place, minio: MinioServer, **more: Any) -> Settings:
    """An operator whose default bucket is the test's MinIO."""
    usual: dict[str, Any] = {
        "namespace": where.namespace,
        "cluster": "test",
        "health_port": 0,
        "health_host": "127.0.0.1",
        "identity": "replica",
        "image": IMAGE,
        "default_s3_endpoint": minio.endpoint,
        "default_s3_bucket": minio.bucket,
        "default_credentials_secret": SECRET,
    }
    return Settings(**{**usual, **more})


async def put_secret(where: Place, access_key: str, secret_key: str, name: str = SECRET, **more: str) -> None:
    """Credentials, made or replaced."""
    pairs = {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key, **more}
    body: Body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": where.namespace},
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in pairs.items()},
    }
    await where.kube.apply(body)


@dataclass
class Lake:
    """An operator at work."""

    operator: Operator
    domains: list[Domain]
    where: Place
    store: ObjectStore
    """What lies under the namespace's prefix."""

    async def turn(self, key: Key) -> None:
        """Have a resource looked at, and wait until nobody is."""
        self.operator.controller.call(key)
        await self.still()

    async def still(self) -> None:
        await until(lambda: self.operator.controller.queue.idle)

    async def told(self, kind: str, name: str, type_: str, reason: str) -> Body:
        """The resource, as soon as a condition has that reason."""
        last: list[dict[str, Any]] = []

        async def check() -> Body | None:
            body = await self.where.get(kind, name)
            found = condition(body, type_)
            last[:] = [found]
            return body if found.get("reason") == reason else None

        try:
            found: Body = await until(check)
        except AssertionError as error:
            raise AssertionError(f"{kind}/{name} {type_} is not {reason}: {last}") from error
        return found

    async def child(self, kind: str, name: str) -> Body:
        """A child, as soon as it is there."""
        found: Body = await until(lambda: self.where.get(kind, name), f"{kind}/{name}")
        return found

    async def jobs(self) -> list[Body]:
        return sorted(
            await self.where.kube.list(KINDS["Job"], self.where.namespace),
            key=lambda one: str(one["metadata"]["name"]),
        )

    async def status(self, kind: str, name: str, status: dict[str, Any]) -> None:
        """Write a status as a controller or the kubelet does."""
        path = KINDS[kind].path(self.where.namespace, name, "status")
        await self.where.kube._ask("PATCH", path, {"status": status}, content="application/merge-patch+json")


@contextlib.asynccontextmanager
async def lake(
    server: KubeApiServer, where: Place, minio: MinioServer, *, secret: bool = True, **more: Any
) -> AsyncIterator[Lake]:
    """An operator for the namespace, until the end of the `with`; by then it has ended in order."""
    domains: list[Domain] = []

    def domain(parts: Parts) -> Domain:
        domains.append(Domain(parts))
        return domains[-1]

    if secret:
        await put_secret(where, minio.access_key, minio.secret_key)
    runtime = SystemRuntime()
    store = S3Store(minio.bucket, where.namespace, runtime, minio.settings())
    operator = Operator(installed(where, minio, **more), domain=domain, login=lambda: server.login(ADMIN))
    task = asyncio.ensure_future(operator.run())
    try:
        await until(lambda: operator._whole or task.done(), "leading")
        yield Lake(operator, domains, where, store)
    finally:
        operator.stop()
        await asyncio.wait([task], timeout=SOON_S)
        assert task.done(), "the operator does not end"
        await store.close()
        runtime.close()
        gc.collect()  # see OPERATOR_TESTS in tests/conftest.py
    task.result()
