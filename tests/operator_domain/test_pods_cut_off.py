"""A real pod whose keys are not the operator's any more: its index says so, and nothing else changes."""

import pytest

from kube_api_server import KubeApiServer
from lakehouse.control.kinds import VECTOR_INDEX
from minio_server import MinioServer
from operator_domain.lake import SECRET, lake
from operator_domain.little_kubelet import pods
from operator_frame.running import Place, condition

pytestmark = [pytest.mark.kubernetes, pytest.mark.minio, pytest.mark.timeout(600)]


async def test_an_index_whose_pods_are_refused_says_so_while_they_are(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async with lake(kube_api, where, minio) as it, pods(it) as kubelet:
        await where.index()
        await it.told(VECTOR_INDEX, "products", "Ready", "AllReplicasServing")
        await it.told(VECTOR_INDEX, "products", "StorageReachable", "ProbeSucceeded")
        key = kubelet.folder / f"secret-{SECRET}" / "AWS_SECRET_ACCESS_KEY"
        key.write_text("no-longer-the-key")
        body = await it.told(VECTOR_INDEX, "products", "StorageReachable", "UnreachableFromPods")
        assert "SignatureDoesNotMatch" in condition(body, "StorageReachable")["message"]
        assert condition(body, "Ready")["status"] == "True"
        await it.still()
        told = await where.get(VECTOR_INDEX, "products")
        await it.turn(where.key(VECTOR_INDEX, "products"))
        assert await where.get(VECTOR_INDEX, "products") == told  # the same trouble is written once
        key.write_text(minio.secret_key)
        body = await it.told(VECTOR_INDEX, "products", "StorageReachable", "ProbeSucceeded")
        assert condition(body, "Ready")["status"] == "True"
