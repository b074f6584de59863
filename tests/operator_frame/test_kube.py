"""The verbs against a real API server, and what their errors say."""

import asyncio

import kopf
import pytest

from kube_api_server import KubeApiServer
from lakehouse.core.errors import Conflict, Invalid, NotFound, Unavailable
from lakehouse_operator.kube import (
    CONFIG_MAP,
    KINDS,
    NAMESPACE,
    SERVICE,
    VECTOR_INDEX,
    Body,
    Exists,
    Forbidden,
    Kind,
    Kube,
)
from operator_frame.running import Place

pytestmark = pytest.mark.kubernetes


def table(where: Place, name: str = "table", **data: str) -> Body:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": where.namespace},
        "data": data,
    }


def test_a_kind_is_its_name_and_knows_its_path() -> None:
    assert VECTOR_INDEX == "VectorIndex"
    assert hash(VECTOR_INDEX) == hash("VectorIndex")
    base = "/apis/lakehouse.agentview.dev/v1alpha1"
    assert VECTOR_INDEX.path("shop", "a", "status") == f"{base}/namespaces/shop/vectorindexes/a/status"
    assert VECTOR_INDEX.path(None) == f"{base}/vectorindexes"
    assert NAMESPACE.path(None, "a/b") == "/api/v1/namespaces/a%2Fb"
    assert KINDS["ConfigMap"] is CONFIG_MAP


async def test_applying_the_same_again_writes_nothing(where: Place) -> None:
    first = await where.kube.apply(table(where, routes="1"))
    assert await where.kube.apply(table(where, routes="1")) == first
    assert "managedFields" not in first["metadata"]


async def test_applying_leaves_what_others_own_and_takes_back_what_is_ours(
    kube_api: KubeApiServer, where: Place
) -> None:
    await where.kube.apply(table(where, routes="1", gone="1"))
    patch = '{"data": {"routes": "theirs", "more": "theirs"}}'
    kube_api.kubectl("patch", "-n", where.namespace, "configmap", "table", "--type=merge", f"-p={patch}")
    body = await where.kube.apply(table(where, routes="2"))
    assert body["data"] == {"routes": "2", "more": "theirs"}


async def test_a_status_is_replaced_whole_and_only_in_the_version_that_was_seen(where: Place) -> None:
    body = await where.index()
    version = body["metadata"]["resourceVersion"]
    status = {"items": 1, "endpoint": "a", "conditions": []}
    written = await where.kube.apply_status(VECTOR_INDEX, where.namespace, "products", status, version)
    assert written["status"] == status
    with pytest.raises(Conflict, match="has been modified"):
        await where.kube.apply_status(VECTOR_INDEX, where.namespace, "products", {"items": 2}, version)
    version = written["metadata"]["resourceVersion"]
    written = await where.kube.apply_status(VECTOR_INDEX, where.namespace, "products", {"items": 2}, version)
    assert written["status"] == {"items": 2}
    again = await where.kube.apply_status(
        VECTOR_INDEX, where.namespace, "products", {"items": 2}, written["metadata"]["resourceVersion"]
    )
    assert again == written
    with pytest.raises(NotFound):
        await where.kube.apply_status(VECTOR_INDEX, where.namespace, "other", {}, version)


async def test_what_is_there_is_not_created_again(where: Place) -> None:
    await where.kube.create(table(where, routes="1"))
    with pytest.raises(Exists, match='configmaps "table" already exists'):
        await where.kube.create(table(where, routes="2"))


async def test_absent_is_none_and_an_unknown_kind_is_not_absent(where: Place) -> None:
    assert await where.kube.get(CONFIG_MAP, where.namespace, "table") is None
    unknown = Kind("Nothing", "nothings", "nowhere.example")
    with pytest.raises(NotFound, match="does not serve"):
        await where.kube.get(unknown, where.namespace, "a")
    with pytest.raises(NotFound):
        await where.kube.list(unknown)


async def test_only_the_object_of_that_uid_is_deleted(where: Place) -> None:
    body = await where.kube.create(table(where))
    await where.kube.delete(CONFIG_MAP, where.namespace, "table", uid="another")
    assert await where.kube.get(CONFIG_MAP, where.namespace, "table") == body
    await where.kube.delete(CONFIG_MAP, where.namespace, "table", uid=body["metadata"]["uid"])
    assert await where.kube.get(CONFIG_MAP, where.namespace, "table") is None
    await where.kube.delete(CONFIG_MAP, where.namespace, "table")


async def test_lists_are_whole_over_pages_and_filtered_by_labels(
    where: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lakehouse_operator.kube.PAGE", 3)
    for number in range(8):
        body = table(where, f"t{number}")
        body["metadata"]["labels"] = {"even": str(number % 2 == 0), "all": "x"}
        await where.kube.create(body)
    found = await where.kube.list(CONFIG_MAP, where.namespace, {"even": "True", "all": "x"})
    assert [one["metadata"]["name"] for one in found] == ["t0", "t2", "t4", "t6"]
    assert {(one["kind"], one["apiVersion"]) for one in found} == {("ConfigMap", "v1")}
    assert len(await where.kube.list(CONFIG_MAP, where.namespace, {"all": "x"})) == 8


async def test_metadata_is_merged_into_the_version_that_was_seen(where: Place) -> None:
    body = await where.index()
    patch = {"finalizers": ["example.com/f"], "resourceVersion": body["metadata"]["resourceVersion"]}
    written = await where.kube.patch_metadata(VECTOR_INDEX, where.namespace, "products", patch)
    assert written["metadata"]["finalizers"] == ["example.com/f"]
    with pytest.raises(Conflict):
        await where.kube.patch_metadata(VECTOR_INDEX, where.namespace, "products", patch)
    await where.kube.patch_metadata(VECTOR_INDEX, where.namespace, "products", {"finalizers": None})


async def test_what_is_forbidden_is_said_in_the_api_servers_words(
    kube_api: KubeApiServer, where: Place
) -> None:
    stranger = Kube(lambda: kube_api.login("stranger"))
    with pytest.raises(Forbidden, match='User "stranger" cannot list resource "services"') as raised:
        await stranger.list(SERVICE, where.namespace)
    assert raised.value.authenticated
    await stranger.close()


async def test_what_is_invalid_is_said_in_the_api_servers_words(where: Place) -> None:
    with pytest.raises(Invalid, match=r"spec\.dimension"):
        await where.index(dimension=0)


async def test_a_token_that_is_refused_is_read_again(kube_api: KubeApiServer, where: Place) -> None:
    logins = []

    def login() -> kopf.ConnectionInfo:
        logins.append(1)
        good = kube_api.login()
        if len(logins) > 1:
            return good
        return kopf.ConnectionInfo(server=good.server, ca_path=good.ca_path, token="run-out")

    kube = Kube(login)
    found = await asyncio.gather(*(kube.list(CONFIG_MAP, where.namespace) for _ in range(8)))
    assert found == [[]] * 8
    assert len(logins) == 2
    await kube.close()


async def test_a_token_that_stays_refused_is_said(kube_api: KubeApiServer, where: Place) -> None:
    good = kube_api.login()
    bad = kopf.ConnectionInfo(server=good.server, ca_path=good.ca_path, token="wrong")
    kube = Kube(lambda: bad)
    with pytest.raises(Forbidden) as raised:
        await kube.list(CONFIG_MAP, where.namespace)
    assert not raised.value.authenticated
    await kube.close()


async def test_nobody_there_is_unavailable() -> None:
    kube = Kube(lambda: kopf.ConnectionInfo(server="http://127.0.0.1:1"))
    with pytest.raises(Unavailable, match="does not answer"):
        await kube.get(CONFIG_MAP, "default", "a")
    await kube.close()
