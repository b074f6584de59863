"""Pods of one index in a simulated world: each keeps one shard, asks the others, and forwards writes to its peers.

The protocol is the real one, from `RemoteShard` to `InternalApi`; only what carries a call is the world's, which loses
requests and answers, and is slow at times.  What this module does not do: say what must hold.
"""

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any
from urllib.parse import unquote

from lakehouse.collection import Told
from lakehouse.core.errors import Dropped, LakehouseError, NotFound, OtherLife
from lakehouse.indexes import Indexes
from lakehouse.placement import Neighbours, Pods
from lakehouse.remote.calls import Unanswered, Unsent, refusal
from lakehouse.server.http import BodyBudget, Request, Response
from lakehouse.server.internal_api import InternalApi
from lakehouse.server.kept_index import KeptIndex
from lakehouse.server.vectors_api import VectorsApi
from lakehouse.testing.history import ABSENT, Lost
from lakehouse.testing.schedules import PARAMS
from lakehouse.testing.world import Fault, Process, World

BODY_BYTES = 64 << 20
LIVES_MAX = 6
HOSTS = "http://10.0.{shard}.1:80,10.0.{shard}.2:80"


class Pod:
    """One process that keeps one shard, at an address of its own."""

    def __init__(self, net: "Net", shard: int, replica: int) -> None:
        self.net = net
        self.shard = shard
        self.address = f"http://10.0.{shard}.{replica + 1}:80"
        self.process = net.world.start(f"pod-{shard}-{replica}-{len(net.world.processes)}")
        runtime = self.process.runtime
        near = Neighbours(runtime)
        near.calls = Wire(net, self.process, near.instance.hex)  # type: ignore[assignment]
        url = ",".join(HOSTS.split(",")[: net.replicas])
        placement = Pods(
            near,
            peers=url.replace("{shard}", str(shard)) if net.replicas > 1 else None,
            index=PARAMS.name,
            shard=shard,
            shard_url=url,
        )
        self.process.indexes = Indexes(self.process.store, runtime, net.world.settings, placement=placement)
        self.instance = near.instance.hex
        self.api = InternalApi(
            self.process.indexes, runtime, near, lambda: (True, ""), lambda name: None, BODY_BYTES
        )
        if net.looks:
            kept = KeptIndex(self.process.indexes, runtime, PARAMS.name)
            runtime.spawn(kept.run(), name=f"{self.process.name} keeps")

    async def answer(self, path: str, body: bytes) -> Response:
        """What the pod's server answers a call."""
        place, _, query = path.partition("?")
        _, _, _, name, _, life, shard, verb = place.split("/")
        request = _request(body, query.encode())
        request.params = {"name": unquote(name), "life": life, "shard": shard, "verb": verb}
        answer = await self.api.shard(request)
        assert isinstance(answer, Response)
        return answer

    async def page(self) -> tuple[set[str], float]:
        """The ids on the first page that a client is given, and seconds by which it is told to be behind."""
        request = _request(b'{"limit":1000}')
        request.params = {"name": PARAMS.name}
        answer = await VectorsApi(self.process.indexes, self.process.runtime, BODY_BYTES).scroll(request)
        told = dict(answer.headers).get(b"lakehouse-staleness", b"0")
        return {item["id"] for item in json.loads(answer.body)["items"]}, float(told)


def _request(body: bytes, query: bytes = b"") -> Request:
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()  # nobody hangs up here
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {"type": "http", "method": "POST", "query_string": query}
    return Request(scope, receive, {}, "simulated", BodyBudget(1 << 40))


class Net:
    """All pods of an index; one that crashes is replaced at its address."""

    def __init__(self, world: World, shards: int, replicas: int, *, looks: bool = True) -> None:
        """`looks`: pods look after the index without being asked, as they do."""
        self.world = world
        self.looks = looks
        self.shards = shards
        self.replicas = replicas
        self.pods = {
            (shard, replica): Pod(self, shard, replica)
            for shard in range(shards)
            for replica in range(replicas)
        }

    @property
    def members(self) -> list[Process]:
        return [pod.process for pod in self.pods.values()]

    def pick(self) -> Process:
        return self.world.random.choice(self.members)

    def at(self, address: str) -> Pod | None:
        return next((pod for pod in self.pods.values() if pod.address == address), None)

    def crash(self) -> None:
        place = self.world.random.choice(sorted(self.pods))
        self.pods[place].process.crash()
        self.pods[place] = Pod(self, *place)

    def pause(self) -> None:
        process = self.pick()
        process.pause()
        asyncio.get_running_loop().call_later(self.world.random.expovariate(1 / 2.0), process.resume)

    async def trouble(self, crashes: int, pauses: int, span_s: float) -> None:
        events: list[Callable[[], None]] = [self.crash] * crashes + [self.pause] * pauses
        self.world.random.shuffle(events)
        for event in events:
            await asyncio.sleep(self.world.random.uniform(0, span_s / max(1, len(events))))
            event()


class Wire:
    """Calls between simulated pods, as `lakehouse.remote.calls.Calls` makes them."""

    def __init__(self, net: Net, process: Process, instance: str) -> None:
        self.instance = instance
        self._net = net
        self._process = process

    def is_here(self, address: str) -> bool:
        pod = self._net.at(address)
        return pod is not None and pod.instance == self.instance

    async def close(self) -> None:
        """Nothing to close."""

    async def post(
        self, address: str, path: str, body: bytes, timeout_s: float, *, twice: bool = True
    ) -> bytes:
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._sent(address, path, body)
        except TimeoutError as error:
            raise Unanswered("simulated: no answer in time") from error
        if answer.status != 200:
            raise refusal(answer.status, answer.body)
        return answer.body

    async def _sent(self, address: str, path: str, body: bytes) -> Response:
        world = self._net.world
        await asyncio.sleep(world.random.expovariate(1 / world.weather.latency_s))
        await self._process.running()
        fault = world.fault(self._process.name, "call", f"{address}{path}")
        pod = self._net.at(address)
        if pod is None or fault is Fault.REFUSED:
            raise Unsent("simulated: nobody there")
        if fault is Fault.LOST_REQUEST:
            raise Unanswered("simulated: lost on its way")
        if fault is Fault.LATE:  # slow; what arrives when its caller has given up is none of the promise
            await asyncio.sleep(world.random.expovariate(1 / world.weather.late_s))
        await pod.process.running()
        if not pod.process.alive:
            raise Unanswered("simulated: dead")
        task = pod.process.run(pod.answer(path, body))
        await asyncio.wait([task])
        await pod.process.running()
        await asyncio.sleep(world.random.expovariate(1 / world.weather.latency_s))
        if task.cancelled() or not pod.process.alive or fault is Fault.LOST_ANSWER:
            raise Unanswered("simulated: the answer is lost")
        return task.result()

    def stream(
        self, address: str, path: str, body: bytes, timeout_s: float
    ) -> AbstractAsyncContextManager[Any]:
        raise Unsent("simulated: nothing is streamed here")


async def values(process: Process, ids: list[str]) -> tuple[dict[str, int], bool]:
    """What a request at a pod shows of some ids, and whether that was strong; repeated as the server repeats it.

    Raises `Lost` for a torn item, and what the last attempt raises.
    """
    for attempt in range(LIVES_MAX):
        try:
            collection = await process.indexes.open(PARAMS.name)
            found = {}
            strong = True
            for item_id in ids:
                told = Told()
                try:
                    item = await collection.item(item_id, told=told)
                except Dropped:
                    raise
                except NotFound:
                    found[item_id] = ABSENT
                    continue
                finally:
                    strong = strong and told.stale_s == 0.0
                if int(item.vector[0]) != int(item.metadata):
                    raise Lost(f"{item_id} is torn: vector {item.vector[0]}, metadata {item.metadata!r}")
                found[item_id] = int(item.metadata)
            return found, strong
        except (Dropped, OtherLife) as error:
            if attempt == LIVES_MAX - 1:
                raise
            await process.runtime.sleep(0.1)
            if isinstance(error, OtherLife):
                try:
                    await process.indexes.renewed(PARAMS.name)
                except LakehouseError:
                    continue
    raise AssertionError("not reached")
