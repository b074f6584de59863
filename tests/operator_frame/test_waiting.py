"""Resources that wait for others to be let go, or are held back: looked at ever more seldom, and never given up."""

import asyncio

import pytest

from kube_api_server import KubeApiServer
from lakehouse.control.kinds import INDEX_SNAPSHOT, VECTOR_INDEX
from lakehouse.control.state import PAUSE_ANNOTATION
from lakehouse_operator import converge, main
from lakehouse_operator.kube import KINDS
from lakehouse_operator.names import FINALIZER
from lakehouse_operator.watching import NamespacesChanged, Watcher
from operator_frame.running import Place, place, running, until

pytestmark = pytest.mark.kubernetes


async def test_two_that_others_hold_do_not_call_each_other_without_end(
    kube_api: KubeApiServer, where: Place
) -> None:
    """Each does the same at every turn, and concerns the other."""
    async with running(kube_api, where) as it:
        held = ["example.com/backup"]
        await where.create(VECTOR_INDEX, "products", {"dimension": 3}, finalizers=held)
        await where.create(INDEX_SNAPSHOT, "before", {"indexRef": {"name": "products"}}, finalizers=held)
        await where.ready()
        for kind, name in ((VECTOR_INDEX, "products"), (INDEX_SNAPSHOT, "before")):
            await where.kube.delete(KINDS[kind], where.namespace, name)
        await until(lambda: len([act for _, act in it.domain.acted if act == "RemoveResource"]) >= 4)
        before = len(it.domain.observed)
        await asyncio.sleep(3)
        assert len(it.domain.observed) - before < 20  # it was hundreds a second
        for kind, name in ((VECTOR_INDEX, "products"), (INDEX_SNAPSHOT, "before")):
            await where.kube.patch_metadata(KINDS[kind], where.namespace, name, {"finalizers": None})


async def test_what_another_version_wrote_into_a_status_holds_no_deletion_up(
    kube_api: KubeApiServer, where: Place
) -> None:
    spec = {"dimension": 3, "deletionPolicy": "Delete"}
    made = await where.create(VECTOR_INDEX, "products", spec, finalizers=[FINALIZER])
    told = {
        "type": "Warmed",
        "status": "True",
        "reason": "Loaded",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    kind, version = KINDS[VECTOR_INDEX], made["metadata"]["resourceVersion"]
    await where.kube.apply_status(kind, where.namespace, "products", {"conditions": [told]}, version)
    await where.kube.delete(kind, where.namespace, "products")
    async with running(kube_api, where) as it:
        await until(lambda: [act for _, act in it.domain.acted if act == "RemoveResource"])
    await where.kube.patch_metadata(kind, where.namespace, "products", {"finalizers": None})


async def test_a_paused_index_whose_pods_answer_otherwise_is_looked_at(
    kube_api: KubeApiServer, where: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converge, "POLL_S", 0.2)
    async with running(kube_api, where) as it:
        await where.index(annotations={PAUSE_ANNOTATION: "true"})
        key = where.key(VECTOR_INDEX, "products")
        await until(lambda: key in it.domain.observed)
        pod = {"name": "p", "namespace": where.namespace, "uid": "p", "resourceVersion": "1"}
        labels = {"lakehouse.agentview.dev/index": "products"}
        it.operator.cache.put({"apiVersion": "v1", "kind": "Pod", "metadata": {**pod, "labels": labels}})
        await until(lambda: key in it.domain.polled)


async def test_who_is_asked_to_end_does_not_begin_anew(
    kube_api: KubeApiServer, where: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A namespace that goes together with the operator's own, while that is cleaned up."""
    looked = asyncio.Event()

    class Losing(Watcher):
        async def check_namespaces(self) -> None:
            if operator and operator[0]._stop.is_set():
                looked.set()
                raise NamespacesChanged("a namespace may not be watched any more")

    async def leave() -> None:
        await looked.wait()

    operator: list[main.Operator] = []
    monkeypatch.setattr(main, "NAMESPACES_S", 0.1)
    async with (
        place(kube_api) as other,
        running(kube_api, where, watcher=Losing, watch_namespaces=(where.namespace, other.namespace)) as it,
    ):
        operator.append(it.operator)
        monkeypatch.setattr(it.operator._leaving, "leave", leave)
