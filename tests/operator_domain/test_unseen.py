"""What cannot be seen passes neither for empty nor for well: content that is elsewhere, a tier whose pods are down."""

import pytest

from kube_api_server import KubeApiServer
from lakehouse import lives
from lakehouse.control.kinds import VECTOR_INDEX
from minio_server import MinioServer
from operator_domain.lake import lake
from operator_frame.running import Place, condition

pytestmark = [pytest.mark.kubernetes, pytest.mark.minio]


async def test_an_index_that_is_not_where_the_installation_looks_now_is_left_alone_until_it_looks_there_again(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    elsewhere = f"{where.namespace}/elsewhere"
    async with lake(kube_api, where, minio) as it:
        await where.index()
        await it.told(VECTOR_INDEX, "products", "Ready", "Starting")
        begun = await lives.current(it.store, "products")
        await it.status(VECTOR_INDEX, "products", {"items": 7})  # as its pods would say
    async with lake(kube_api, where, minio, default_s3_prefix=elsewhere) as it:
        body = await it.told(VECTOR_INDEX, "products", "Ready", "ContentMissing")
        told = condition(body, "Ready")["message"]
        assert f"s3://{minio.bucket}/{elsewhere} at {minio.endpoint}" in told
        assert "7 items" in told
        await where.index("new")  # of which no status tells anything
        await it.told(VECTOR_INDEX, "new", "Ready", "Starting")
        assert await it.store.list("elsewhere/_vectors/products/") == []
        assert await it.store.list("elsewhere/_vectors/new/") != []
    async with lake(kube_api, where, minio) as it:
        await it.told(VECTOR_INDEX, "products", "Ready", "Starting")
        assert await lives.current(it.store, "products") == begun


async def test_a_tier_whose_pods_are_down_is_behind_with_what_it_last_held_whoever_leads(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async with lake(kube_api, where, minio) as it:
        await where.index("workers")
        await where.index("fresh", drain={"into": "workers", "maxItems": 500, "maxAge": "1m"})
        await it.told(VECTOR_INDEX, "fresh", "DrainCurrent", "NotServing")
        held = {"items": 7, "drain": {"lastTime": "2026-05-04T12:00:00Z", "lastMerged": 1}}
        await it.status(VECTOR_INDEX, "fresh", held)  # as it was when its pods last answered
    async with lake(kube_api, where, minio) as it:
        await where.has(VECTOR_INDEX, "fresh", "DrainCurrent", "False")
