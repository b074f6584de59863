"""The pods of one index as processes on loopback: shard i's replica r answers at 127.77.i.r, all on one port."""

import asyncio
import contextlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import httpx

from lakehouse.core.types import IndexParams
from lakehouse.indexes import Indexes
from lakehouse.runtime import SystemRuntime
from lakehouse.store.open import open_store
from live_server import LiveServer
from minio_server import MinioServer
from ports import free_port

PEER_KEY = "the-secret-of-one-deployment"
DIMENSION = 8


class Pod(LiveServer):
    """One `lakehouse serve` of role vectors at an address of its own."""

    def __init__(
        self, data: str, log: Path, host: str, port: int, env: Mapping[str, str], roles: str = "vectors"
    ) -> None:
        super().__init__(data, log, port=port, args=("--host", host, "--roles", roles), env=env)
        self.host = host
        self.url = f"http://{host}:{port}"

    def internal(self, path: str, body: Mapping[str, object] | None = None) -> httpx.Response:
        """GET, or POST where there is a body, under /internal with the peer key."""
        headers = {"authorization": f"Bearer {PEER_KEY}"}
        if body is None:
            return httpx.get(f"{self.url}/internal{path}", headers=headers, timeout=30)
        return httpx.post(f"{self.url}/internal{path}", headers=headers, json=body, timeout=60)


def peer_key_file(folder: Path, index: str, shard: int, replica: int = 0) -> Path:
    """Where a pod that has the peer key as a file finds it."""
    return folder / f"{index}-{shard}-{replica}"


class PodSet:
    """All pods of an index of so many shards, each with so many replicas."""

    def __init__(
        self,
        minio: MinioServer,
        folder: Path,
        *,
        index: str = "products",
        shards: int = 3,
        replicas: int = 2,
        net: int = 77,
        data: str | None = None,
        env: Mapping[str, str] | None = None,
        peer_keys: Path | None = None,
    ) -> None:
        """`peer_keys`: a folder in which each pod has the peer key in a file of its own, `peer_key_file`."""
        self.data = data or f"s3://{minio.bucket}/pods-{secrets.token_hex(4)}"
        self.index = index
        self.shards = shards
        self.port = free_port()
        self.shard_url = "http://" + ",".join(
            f"127.{net}.{{shard}}.{replica + 1}:{self.port}" for replica in range(replicas)
        )
        self._minio = minio
        folder.mkdir(parents=True, exist_ok=True)
        self.pods = {
            (shard, replica): Pod(
                self.data,
                folder / f"{index}-{shard}-{replica}.log",
                f"127.{net}.{shard}.{replica + 1}",
                self.port,
                {
                    **minio.environment(),
                    "LAKEHOUSE_INDEX": index,
                    "LAKEHOUSE_SHARD": str(shard),
                    "LAKEHOUSE_SHARD_URL": self.shard_url,
                    **(
                        {"LAKEHOUSE_PEER_KEY": PEER_KEY}
                        if peer_keys is None
                        else {"LAKEHOUSE_PEER_KEY_FILE": str(peer_key_file(peer_keys, index, shard, replica))}
                    ),
                    "LAKEHOUSE_DECLARED": f"VectorIndex/shop/{index}",
                    **(env or {}),
                },
            )
            for shard in range(shards)
            for replica in range(replicas)
        }

    @property
    def all(self) -> list[Pod]:
        return list(self.pods.values())

    def create(self) -> None:
        """Begin an empty life of the index, as the operator does."""
        with_store(self._minio, self.data, lambda indexes: _created(indexes, self.index, self.shards))

    def start(self) -> "PodSet":
        """Start all pods and wait until each is ready."""
        for pod in self.all:
            pod.spawn()
        for pod in self.all:
            pod.wait_ready()
        return self

    def __enter__(self) -> "PodSet":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pod in self.all:
            pod.__exit__(kind, error, trace)


async def _created(indexes: Indexes, name: str, shards: int) -> None:
    await indexes.create(IndexParams(name, DIMENSION), shards, owner=f"VectorIndex/shop/{name}")


def with_store(minio: MinioServer, data: str, act: object) -> None:
    """Run `act(indexes)` over the bucket in this process."""

    async def run() -> None:
        runtime = SystemRuntime(1)
        store = await open_store(data, runtime, s3=minio.settings(), probed=False)
        indexes = Indexes(store, runtime)
        try:
            await act(indexes)  # type: ignore[operator]
        finally:
            await indexes.close()
            await store.close()
            runtime.close()

    asyncio.run(run())


@contextlib.contextmanager
def pool(
    minio: MinioServer, folder: Path, *, replicas: int = 2, net: int = 78, data: str | None = None
) -> Iterator[Sequence[Pod]]:
    """Replicas that each serve every index of one prefix."""
    port = free_port()
    peers = "http://" + ",".join(f"127.{net}.0.{replica + 1}:{port}" for replica in range(replicas))
    data = data or f"s3://{minio.bucket}/pool-{secrets.token_hex(4)}"
    env = {**minio.environment(), "LAKEHOUSE_PEERS": peers, "LAKEHOUSE_PEER_KEY": PEER_KEY}
    pods = [
        Pod(data, folder / f"pool-{replica}.log", f"127.{net}.0.{replica + 1}", port, env)
        for replica in range(replicas)
    ]
    with contextlib.ExitStack() as stack:
        for pod in pods:
            stack.enter_context(pod)
            pod.spawn()
        for pod in pods:
            pod.wait_ready()
        yield pods
