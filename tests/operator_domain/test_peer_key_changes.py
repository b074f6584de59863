"""A peer key that changes under a served index: what the operator says until its pods have the new one."""

import asyncio

import pytest

from kube_api_server import KubeApiServer
from lakehouse.control.kinds import VECTOR_INDEX
from lakehouse_operator import names, peers
from lakehouse_operator.kube import SECRET
from minio_server import MinioServer
from operator_domain.lake import lake, until
from operator_domain.little_kubelet import LittleKubelet, pods
from operator_frame.running import Place, condition

pytestmark = [pytest.mark.kubernetes, pytest.mark.minio, pytest.mark.timeout(600)]
CHECK_S = 0.2
LOOKS = 40
"""A tenth of a second each: several of the operator's own."""


async def change(where: Place, key: str) -> None:
    await where.kube.delete(SECRET, where.namespace, names.PEER_KEY_SECRET)
    await where.kube.create(peers.secret(where.namespace, key))


async def ready(where: Place) -> str:
    body = await where.get(VECTOR_INDEX, "products")
    return str(condition(body, "Ready")["status"])


async def refused(where: Place) -> bool:
    body = await where.get(VECTOR_INDEX, "products")
    found = condition(body, "Ready")
    return found["status"] == "False" and "within 90 s of a change" in found["message"]


async def bring(kubelet: LittleKubelet) -> None:
    """As the kubelet does, sooner or later."""
    await kubelet._mounted(names.PEER_KEY_SECRET)


async def test_pods_that_do_not_have_a_changed_key_yet_are_asked_with_the_one_before_it(
    kube_api: KubeApiServer, where: Place, minio: MinioServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "CHECK_S", CHECK_S)
    async with lake(kube_api, where, minio) as it, pods(it) as kubelet:
        await where.index()
        await it.told(VECTOR_INDEX, "products", "Ready", "AllReplicasServing")
        await change(where, "the-second-peer-key")
        seen = set()
        for moment in range(3 * LOOKS):
            if moment == LOOKS:
                await bring(kubelet)
            if moment == 2 * LOOKS:
                monkeypatch.setattr(peers.Known, "shown", lambda known, now_s: known.key)  # its time is over
            seen.add(await ready(where))
            await asyncio.sleep(0.1)
        assert seen == {"True"}
        assert "the peer key changed" in kubelet.log(names.shard("products", 0))


async def test_pods_whose_key_nobody_knows_any_more_are_served_as_soon_as_they_have_the_new_one(
    kube_api: KubeApiServer, where: Place, minio: MinioServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lake(kube_api, where, minio) as it, pods(it) as kubelet:
        await where.index()
        await it.told(VECTOR_INDEX, "products", "Ready", "AllReplicasServing")
        processes = dict(kubelet.processes)
        await change(where, "made-while-it-was-down")
        it.domains[-1]._peers._known.clear()  # as of one that has just begun
        await until(lambda: refused(where))
        await bring(kubelet)
        await it.told(VECTOR_INDEX, "products", "Ready", "AllReplicasServing")
        assert kubelet.processes == processes
