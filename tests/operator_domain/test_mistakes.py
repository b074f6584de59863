"""What people write wrongly in a spec is told in its status, and neither stops other changes nor a deletion."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from kube_api_server import KubeApiServer
from lakehouse.control import rounds
from lakehouse.control.kinds import DATASET, INDEX_SNAPSHOT, VECTOR_INDEX
from lakehouse_operator import names
from lakehouse_operator.kube import DEPLOYMENT
from minio_server import MinioServer
from operator_domain.backend import no_store
from operator_domain.lake import SECRET, lake, until
from operator_frame.running import Place, condition

pytestmark = [pytest.mark.kubernetes, pytest.mark.minio]
RAW = {"sources": [{"uri": "s3://raw/rows.csv"}]}
ALL = ((INDEX_SNAPSHOT, "kept"), (DATASET, "rows"), (VECTOR_INDEX, "products"))


@pytest.fixture
def backend() -> Iterator[str]:
    with no_store() as endpoint:
        yield endpoint


def source(name: str) -> dict[str, Any]:
    return {"dataset": {"name": name, "idColumn": "id", "vectorColumn": "embedding", "follow": "Latest"}}


@pytest.mark.parametrize(
    ("s3", "reason"),
    [
        ({"region": "eu_central"}, "NotUsable"),
        ({"endpoint": "http://my_minio:9000"}, "NotUsable"),
        ({"endpoint": ""}, "Timeout"),
    ],
    ids=["region", "endpoint", "no store"],
)
async def test_storage_that_is_edited_wrongly_is_told_of_and_holds_nothing_back(
    kube_api: KubeApiServer,
    where: Place,
    minio: MinioServer,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
    s3: dict[str, str],
    reason: str,
) -> None:
    monkeypatch.setattr(rounds, "DELETION_DEADLINE", timedelta(0))
    wrong = {name: value or backend for name, value in s3.items()}
    async with lake(kube_api, where, minio) as it:
        await where.index(deletionPolicy="Delete")
        await where.create(DATASET, "rows", {**RAW, "deletionPolicy": "Delete"})
        kept = {"indexRef": {"name": "products"}, "deletionPolicy": "Delete"}
        await where.create(INDEX_SNAPSHOT, "kept", kept)
        await it.child(DEPLOYMENT, "products-shard-0")
        for kind, name in ALL:
            await it.told(kind, name, "StorageReachable", "ProbeSucceeded")
        storage = {"s3": wrong, "credentialsSecretRef": {"name": SECRET}}
        await where.patch(DATASET, "rows", {"storage": storage})
        edited = await where.patch(VECTOR_INDEX, "products", {"storage": storage, "replicas": 2})
        for kind, name in ALL:
            body = await it.told(kind, name, "StorageReachable", reason)
            (value,) = wrong.values()
            assert value in condition(body, "StorageReachable")["message"]
            assert body["metadata"]["finalizers"] == [names.FINALIZER]
        assert body["status"]["observedGeneration"] == edited["metadata"]["generation"]

        async def is_scaled() -> bool:
            found = await where.get(DEPLOYMENT, "products-shard-0")
            return found is not None and found["spec"]["replicas"] == 2

        await until(is_scaled, "scaled")
        for kind, name in ALL:
            await where.delete(kind, name)
        skipped = [one for one in await where.events() if one["reason"] == "CleanupSkipped"]
        assert {one["involvedObject"]["kind"] for one in skipped} == {kind for kind, _ in ALL}


@pytest.mark.parametrize("name", ["products.json", "é" * 101], ids=["suffix", "bytes"])
async def test_an_index_of_what_can_be_no_dataset_says_so_and_goes_when_it_is_deleted(
    kube_api: KubeApiServer, where: Place, minio: MinioServer, name: str
) -> None:
    async with lake(kube_api, where, minio) as it:
        await where.index(source=source(name), deletionPolicy="Delete")
        body = await it.told(VECTOR_INDEX, "products", "SourceResolved", "DatasetNotUsable")
        assert name in condition(body, "SourceResolved")["message"]
        assert condition(body, "Ready")["reason"] == "SourceNotResolved"
        await where.delete(VECTOR_INDEX, "products")


async def test_an_index_whose_dataset_lies_nowhere_says_so_and_goes_when_it_is_deleted(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async with lake(kube_api, where, minio, default_s3_bucket="") as it:
        await where.dataset()
        await it.told(DATASET, "rows", "StorageReachable", "NotConfigured")
        storage = {"s3": {"bucket": minio.bucket}}
        await where.index(source=source("rows"), storage=storage, deletionPolicy="Delete")
        body = await it.told(VECTOR_INDEX, "products", "SourceResolved", "DatasetNotUsable")
        assert "dataset=`rows`" in condition(body, "SourceResolved")["message"]
        assert condition(body, "StorageReachable")["reason"] == "ProbeSucceeded"
        await where.delete(VECTOR_INDEX, "products")


async def test_a_secret_named_with_its_namespace_is_told_of_and_holds_nothing_back(
    kube_api: KubeApiServer, where: Place, minio: MinioServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "DENIED_DEADLINE", timedelta(0))
    async with lake(kube_api, where, minio) as it:
        name = f"{where.namespace}/{SECRET}"
        await where.index(storage={"credentialsSecretRef": {"name": name}}, deletionPolicy="Delete")
        await it.told(VECTOR_INDEX, "products", "StorageReachable", "SecretNotReadable")
        await where.delete(VECTOR_INDEX, "products")
