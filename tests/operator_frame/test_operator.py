"""The operator's frame against a real API server: turns, status, watches, pausing, refusals."""

import asyncio
import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import kopf
import pytest

from kube_api_server import KubeApiServer
from lakehouse.control.kinds import DATASET, INDEX_SNAPSHOT, VECTOR_INDEX
from lakehouse.control.state import PAUSE_ANNOTATION, Resource
from lakehouse.core.errors import Invalid
from lakehouse_operator import converge
from lakehouse_operator.cache import MANAGED_BY, Key
from lakehouse_operator.kube import KINDS, POD, SERVICE, Login
from lakehouse_operator.names import FINALIZER
from lakehouse_operator.watching import Watcher
from operator_frame.plain_domain import PlainDomain
from operator_frame.running import Place, condition, place, running, until

pytestmark = pytest.mark.kubernetes
SERVER_FIELDS = {"name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp"}


async def test_an_index_becomes_ready_and_then_its_object_stands_still(
    kube_api: KubeApiServer, where: Place
) -> None:
    async with running(kube_api, where) as it:
        await where.index()
        body = await where.ready()
        key = where.key(VECTOR_INDEX, "products")
        assert it.domain.acted == [(key, "Create")]
        assert body["status"]["observedGeneration"] == 1
        await until(lambda: it.operator.controller.queue.idle)
        body = await where.ready()
        await it.turns(key, 5)
        assert await where.get(VECTOR_INDEX, "products") == body


async def test_no_kind_gets_an_annotation_or_a_finalizer(kube_api: KubeApiServer, where: Place) -> None:
    async with running(kube_api, where):
        await where.index()
        await where.dataset()
        await where.create(INDEX_SNAPSHOT, "one", {"indexRef": {"name": "products"}})
        bodies = [
            await where.ready(),
            await where.has(DATASET, "rows", "Accepted", "True"),
            await where.has(INDEX_SNAPSHOT, "one", "Accepted", "True"),
        ]
        # What they look like after kopf has seen the changes that we made, too.
        await where.patch(VECTOR_INDEX, "products", {"hnsw": {"efSearch": 99}})
        await until(lambda: _observed_generation(where, 2))
        bodies.append(await where.ready())
        for body in bodies:
            assert set(body["metadata"]) == SERVER_FIELDS


async def _observed_generation(where: Place, generation: int) -> bool:
    body = await where.get(VECTOR_INDEX, "products")
    return body is not None and body.get("status", {}).get("observedGeneration") == generation


async def test_a_changed_spec_is_acted_upon(kube_api: KubeApiServer, where: Place) -> None:
    async with running(kube_api, where) as it:
        await where.index()
        await where.ready()
        await where.patch(VECTOR_INDEX, "products", {"hnsw": {"efSearch": 99}})
        key = where.key(VECTOR_INDEX, "products")
        await until(lambda: (key, "SetEfSearch") in it.domain.acted)
        assert it.domain.lives[key].params.ef_search == 99


async def test_what_is_there_before_the_operator_is_looked_at_too(
    kube_api: KubeApiServer, where: Place
) -> None:
    await where.index()
    async with running(kube_api, where):
        await where.ready()


async def test_another_namespace_is_left_alone(kube_api: KubeApiServer, where: Place) -> None:
    async with place(kube_api) as other, running(kube_api, where):
        await other.index()
        await where.index()
        await where.ready()
        body = await other.get(VECTOR_INDEX, "products")
        assert body is not None
        assert "status" not in body


async def test_all_namespaces_are_served_when_that_is_asked_for(
    kube_api: KubeApiServer, where: Place
) -> None:
    async with place(kube_api) as other, running(kube_api, where, watch_namespaces="*"):
        await other.index()
        await other.ready()


async def test_a_paused_resource_is_told_of_and_nothing_is_done(
    kube_api: KubeApiServer, where: Place
) -> None:
    def prepared(domain: PlainDomain) -> None:
        domain.makes_children = True

    async with running(kube_api, where, prepared=prepared) as it:
        await where.index(annotations={PAUSE_ANNOTATION: "true"})
        key = where.key(VECTOR_INDEX, "products")
        body = await where.has(VECTOR_INDEX, "products", "ReconciliationPaused", "True")
        await it.turns(key, 2)
        assert it.domain.acted == []
        assert await where.kube.get(SERVICE, where.namespace, "products") is None
        assert f'paused{{kind="VectorIndex",name="products",namespace="{where.namespace}"}} 1.0' in (
            it.operator.metrics.exposition().decode()
        )
        assert await where.get(VECTOR_INDEX, "products") == body
        await where.annotate(VECTOR_INDEX, "products", {PAUSE_ANNOTATION: None})
        body = await where.ready()
        assert condition(body, "ReconciliationPaused").get("status") != "True"
        assert "_paused{" not in it.operator.metrics.exposition().decode()


async def test_an_object_that_is_refused_holds_up_only_what_begins(
    kube_api: KubeApiServer, where: Place
) -> None:
    class Refused(PlainDomain):
        refuses = True

        async def children(self, resource: Resource[Any], observed: Any) -> None:
            if self.refuses:
                raise Invalid("limits.memory is less than requests.memory")

    async with running(kube_api, where) as it:
        it.operator.controller._domain = domain = Refused(it.domain.parts)
        await where.index()
        key = where.key(VECTOR_INDEX, "products")
        body = await where.has(VECTOR_INDEX, "products", "UpToDate", "False")
        assert condition(body, "UpToDate")["reason"] == "ApplyFailed"
        assert domain.acted == []  # its data would be nobody's to remove
        domain.refuses = False
        await where.ready()
        domain.refuses = True
        await where.patch(VECTOR_INDEX, "products", {"hnsw": {"efSearch": 99}})
        await until(lambda: (key, "SetEfSearch") in domain.acted)
        await until(lambda: it.operator.controller.queue.idle)
        body = await where.has(VECTOR_INDEX, "products", "UpToDate", "False")
        assert condition(body, "UpToDate")["reason"] == "ApplyFailed"
        domain.refuses = False
        await where.has(VECTOR_INDEX, "products", "UpToDate", "True")
        assert [act for _, act in domain.acted] == ["Create", "SetEfSearch"]


async def test_what_this_version_cannot_understand_is_refused_once(
    kube_api: KubeApiServer, where: Place
) -> None:
    definition = "vectorindexes.lakehouse.agentview.dev"
    path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/distance/enum"
    newer = [{"op": "add", "path": f"{path}/-", "value": "hamming"}]
    older = [{"op": "remove", "path": f"{path}/3"}]
    kube_api.kubectl("patch", "crd", definition, "--type=json", f"-p={json.dumps(newer)}")
    try:
        async with running(kube_api, where) as it:

            async def created() -> bool:
                try:
                    spec = {"dimension": 3, "distance": "hamming"}
                    await where.create(VECTOR_INDEX, "products", spec, finalizers=[FINALIZER])
                except Invalid:
                    return False
                return True

            await until(created, "the API server takes the newer definition")
            body = await where.has(VECTOR_INDEX, "products", "Accepted", "False")
            accepted = condition(body, "Accepted")
            assert accepted["reason"] == "InvalidSpec"
            assert "hamming" in accepted["message"]
            assert condition(body, "Ready")["status"] == "Unknown"
            key = where.key(VECTOR_INDEX, "products")
            it.operator.controller.call(key)
            await until(lambda: it.operator.controller.queue.idle)
            assert await where.get(VECTOR_INDEX, "products") == body
            assert [one["reason"] for one in await where.events()] == ["InvalidSpec"]
            # What can be understood again is acted upon.
            await where.kube.delete(KINDS[VECTOR_INDEX], where.namespace, "products")
            await where.index("other")
            await where.ready("other")
            await until(lambda: it.operator.cache.resource(key) is None)
            reasons = [one["reason"] for one in await where.events()]
            assert "CleanupSkipped" in reasons
    finally:
        kube_api.kubectl("patch", "crd", definition, "--type=json", f"-p={json.dumps(older)}")


async def test_a_status_that_somebody_else_wrote_is_put_right(kube_api: KubeApiServer, where: Place) -> None:
    async with running(kube_api, where) as it:
        await where.index()
        await where.ready()
        it.domain.items[where.key(VECTOR_INDEX, "products")] = 7
        lie = {"status": {"items": 1_000, "endpoint": "http://elsewhere"}}
        kube_api.kubectl(
            "patch", "-n", where.namespace, "vix", "products", "--subresource=status", "--type=merge",
            f"-p={json.dumps(lie)}",
        )  # fmt: skip

        async def true_again() -> bool:
            body = await where.get(VECTOR_INDEX, "products")
            status = (body or {})["status"]
            return bool(status["items"] == 7 and status.get("endpoint") != "http://elsewhere")

        await until(true_again)


async def test_a_spec_that_changes_during_a_turn_is_looked_at_again(
    kube_api: KubeApiServer, where: Place
) -> None:
    class Slow(PlainDomain):
        async def observe(self, key: Key, resource: Resource[Any]) -> Any:
            seen = await super().observe(key, resource)
            if len(self.observed) == 1:
                await where.patch(VECTOR_INDEX, "products", {"replicas": 3})
            return seen

    async with running(kube_api, where) as it:
        it.operator.controller._domain = domain = Slow(it.domain.parts)
        await where.index()
        body = await where.ready()
        assert (body["status"]["observedGeneration"], body["status"]["replicas"]) == (2, 3)
        assert len(domain.observed) > 1


async def test_a_child_that_goes_comes_back(kube_api: KubeApiServer, where: Place) -> None:
    def prepared(domain: PlainDomain) -> None:
        domain.makes_children = True

    async with running(kube_api, where, prepared=prepared) as it:
        await where.index()
        await where.ready()
        first = await where.kube.get(SERVICE, where.namespace, "products")
        assert first is not None
        await until(lambda: it.operator.cache.children(SERVICE, where.namespace, MANAGED_BY))
        await where.kube.delete(SERVICE, where.namespace, "products")

        async def back() -> bool:
            found = await where.kube.get(SERVICE, where.namespace, "products")
            return found is not None and found["metadata"]["uid"] != first["metadata"]["uid"]

        await until(back)


async def test_a_resource_that_goes_is_forgotten(kube_api: KubeApiServer, where: Place) -> None:
    async with running(kube_api, where) as it:
        await where.index()
        await where.ready()
        routed = it.domain.routed
        await where.kube.delete(KINDS[VECTOR_INDEX], where.namespace, "products")
        await until(lambda: it.domain.lives == {})
        await until(lambda: it.domain.routed > routed)
        assert it.operator.cache.resource(where.key(VECTOR_INDEX, "products")) is None


async def test_an_index_is_looked_at_when_its_dataset_or_snapshot_changes(
    kube_api: KubeApiServer, where: Place
) -> None:
    source = {"name": "rows", "idColumn": "id", "vectorColumn": "v", "follow": "Latest"}
    async with running(kube_api, where) as it:
        await where.index(source={"dataset": source})
        key = where.key(VECTOR_INDEX, "products")
        await until(lambda: key in it.domain.observed and it.operator.controller.queue.idle)
        for kind, name in ((DATASET, "rows"), (INDEX_SNAPSHOT, "one")):
            before = it.domain.observed.count(key)
            if kind == DATASET:
                await where.dataset()
            else:
                await where.create(kind, name, {"indexRef": {"name": "products"}})
            await until(functools.partial(it.more_than, key, before))


async def test_the_gateway_is_told_before_an_index_says_that_it_is_ready(
    kube_api: KubeApiServer, where: Place
) -> None:
    async with running(kube_api, where) as it:
        await where.index()
        await where.ready()
        [(coming, there)] = it.domain.ahead
        assert condition(coming, "Ready")["status"] == "True"
        assert there is not None
        assert condition(there, "Ready").get("status") != "True"


async def test_an_api_server_that_dies_is_waited_for_and_nothing_is_missed(
    kube_api: KubeApiServer, where: Place
) -> None:
    async with running(kube_api, where) as it:
        await where.index()
        await where.ready()
        await asyncio.to_thread(kube_api.kill)
        it.operator.controller.call(where.key(VECTOR_INDEX, "products"))
        await asyncio.sleep(1.5)
        assert it.operator._alive() == ""
        await asyncio.to_thread(kube_api.start)
        await where.patch(VECTOR_INDEX, "products", {"hnsw": {"efSearch": 99}})
        await where.index("later")
        await where.ready("later")
        await until(lambda: _observed_generation(where, 2))
        assert not it.task.done()


async def test_a_deletion_that_no_watch_told_is_found_by_the_relist(
    kube_api: KubeApiServer, where: Place
) -> None:
    async with running(kube_api, where, resync_s=1) as it:
        body = await where.index()
        await where.ready()
        ghost = {**body, "metadata": {**body["metadata"], "name": "ghost", "uid": "none"}}
        it.operator.cache.put(ghost)
        key = where.key(VECTOR_INDEX, "ghost")
        it.domain.lives[key] = it.domain.lives[where.key(VECTOR_INDEX, "products")]
        await until(lambda: it.operator.cache.resource(key) is None)
        await until(lambda: key not in it.domain.lives)


async def test_pods_that_answer_otherwise_have_their_index_looked_at(
    kube_api: KubeApiServer, where: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converge, "POLL_S", 0.2)
    labels = {**MANAGED_BY, "lakehouse.agentview.dev/index": "products"}
    async with running(kube_api, where) as it:
        await where.index()
        await where.index("without")
        await where.index("asleep", suspend=True)
        await where.ready()
        for name in ("products", "asleep"):
            await where.kube.create(
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {
                        "name": name,
                        "namespace": where.namespace,
                        "labels": {**labels, "lakehouse.agentview.dev/index": name},
                    },
                    "spec": {"containers": [{"name": "serve", "image": "none"}]},
                }
            )
        await until(lambda: len(it.operator.cache.children(POD, where.namespace, MANAGED_BY)) == 2)
        key = where.key(VECTOR_INDEX, "products")
        await until(lambda: it.domain.polled.count(key) > 2)
        await until(lambda: it.operator.controller.queue.idle)
        observed = it.domain.observed.count(key)
        polled = it.domain.polled.count(key)
        await until(lambda: it.domain.polled.count(key) > polled + 2)
        assert it.domain.observed.count(key) == observed
        it.domain.answers[key] = True
        await until(lambda: it.domain.observed.count(key) > observed)
        assert set(it.domain.polled) == {key}


async def test_a_token_that_the_watches_are_refused_with_is_read_again(
    kube_api: KubeApiServer, where: Place
) -> None:
    class Refused(Watcher):
        async def run(self, login: Login, begun: Callable[[], None] = lambda: None) -> None:
            logins = []

            def renewed() -> kopf.ConnectionInfo:
                logins.append(1)
                good = login()
                return good if len(logins) > 1 else dataclasses.replace(good, token="run-out")

            await super().run(renewed, begun)
            assert len(logins) > 1

    async with running(kube_api, where, watcher=Refused):
        await where.index()
        await where.ready()
