"""Who a cluster is stays the same, whatever the operator may read later."""

import pytest

from kube_api_server import ADMIN, KubeApiServer
from lakehouse.runtime import SystemRuntime
from lakehouse_operator import identity
from lakehouse_operator.kube import CONFIG_MAP, NAMESPACE, Kube
from operator_frame.running import Place, place, settings

pytestmark = pytest.mark.kubernetes


async def asked(server: KubeApiServer, where: Place, user: str, cluster: str = "") -> str:
    kube, runtime = Kube(lambda: server.login(user)), SystemRuntime(1)
    try:
        return await identity.of_cluster(kube, runtime, settings(where, cluster=cluster))
    finally:
        await kube.close()
        runtime.close()


async def uid(where: Place, namespace: str) -> str:
    body = await where.kube.get(NAMESPACE, None, namespace)
    assert body is not None
    return str(body["metadata"]["uid"])


async def test_it_is_the_uid_of_what_may_be_read_and_stays_that(
    kube_api: KubeApiServer, where: Place
) -> None:
    assert await asked(kube_api, where, "operator") == identity.UNKNOWN  # no right to anything
    kube_api.kubectl(
        "apply", "-n", where.namespace, "-f", "-",
        document="""
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: identity}
rules:
  - {apiGroups: [""], resources: [configmaps], verbs: [get, create]}
  - {apiGroups: [""], resources: [namespaces], verbs: [get]}
""",
    )  # fmt: skip
    kube_api.kubectl(
        "create", "rolebinding", "identity", "-n", where.namespace, "--role=identity", "--user=operator"
    )
    own = await uid(where, where.namespace)
    assert await asked(kube_api, where, "operator") == own
    # Who may read more now finds what was written down.
    assert await asked(kube_api, where, ADMIN) == own
    await where.kube.delete(CONFIG_MAP, where.namespace, "lakehouse-cluster")
    assert await asked(kube_api, where, "operator") == own
    assert await asked(kube_api, where, "operator", cluster="north-1") == "north-1"


async def test_where_every_namespace_is_served_it_is_the_uid_of_the_clusters_own(
    kube_api: KubeApiServer, where: Place
) -> None:
    found = await asked(kube_api, where, ADMIN)
    assert found == await uid(where, "kube-system")
    async with place(kube_api) as other:
        assert await asked(kube_api, other, ADMIN) == found
