"""The pool beside declared indexes that lie under the same prefix."""

import secrets
from pathlib import Path

import httpx
import pytest

from lakehouse.core.types import IndexParams
from lakehouse.indexes import Indexes
from minio_server import MinioServer
from pods.pods import DIMENSION, Pod, pool, with_store

pytestmark = [pytest.mark.minio, pytest.mark.timeout(300)]


def loaded(pod: Pod) -> set[str]:
    return {one["name"] for one in pod.internal("/state").json()["indexes"]}


def test_what_is_declared_is_not_loaded_before_somebody_asks_for_it(
    minio: MinioServer, tmp_path: Path
) -> None:
    async def begun(indexes: Indexes) -> None:
        await indexes.create(IndexParams("plain", DIMENSION))
        await indexes.create(IndexParams("declared", DIMENSION), owner="cluster/shop/declared")

    data = f"s3://{minio.bucket}/pool-{secrets.token_hex(4)}"
    with_store(minio, data, begun)
    with pool(minio, tmp_path, replicas=1, net=83, data=data) as (pod,):
        assert loaded(pod) == {"plain"}
        listed = httpx.get(f"{pod.url}/v1/vectors/index", timeout=30).json()
        assert "declared" in str(listed)
        body = {"vector": [1.0] * DIMENSION, "k": 1}
        asked = httpx.post(f"{pod.url}/v1/vectors/index/declared/search", json=body, timeout=30)
        assert asked.status_code == 200, asked.text
        assert loaded(pod) == {"plain", "declared"}
