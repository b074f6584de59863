"""The end of the operator's own namespace: what waits for the operator goes before the operator has gone.

A cluster that deletes a namespace ends its pods first and deletes its resources after that, and then nobody is left to
take our finalizer off.  So an operator that is asked to end looks whether its own namespace is being deleted; then it
deletes what is under `deletionPolicy: Delete` there itself, since all of it goes anyway, and turns clean up as they
always do: its own, or those of the replica that leads.  What was not cleaned up when the time is over is let go, and
its data stays.  What this module does not do: clean up; and nothing in any other namespace, or when the operator ends
for another reason.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence

from lakehouse.core.errors import LakehouseError
from lakehouse.runtime import Runtime
from lakehouse_operator import finalizers
from lakehouse_operator.cache import Cache, key_of
from lakehouse_operator.kube import KINDS, NAMESPACE, RESOURCES, Body, Kube

logger = logging.getLogger(__name__)

ASK_S = 3.0
"""For an answer about the namespace: an ordinary end waits for one."""
CLEAN_UP_S = 15.0
LET_GO_S = 5.0
"""With what the end itself takes, all of it is shorter than the pod's terminationGracePeriodSeconds."""
LOOK_S = 0.5
AT_ONCE = 8


class Leaving:
    """How an operator leaves its namespace."""

    def __init__(
        self, kube: Kube, cache: Cache, runtime: Runtime, namespace: str, seen: Callable[[Body], None]
    ) -> None:
        self._kube = kube
        self._cache = cache
        self._runtime = runtime
        self._namespace = namespace
        self._seen = seen
        """Takes a resource as it is now, as from a watch."""

    async def leave(self) -> None:
        """Free what we keep, if the namespace is being deleted.  Raises nothing."""
        if not await self._is_ending():
            return
        logger.info("our namespace is being deleted: cleaning up what is to be deleted with its data")
        try:
            async with asyncio.timeout(CLEAN_UP_S):
                while await self._clean_up():
                    await self._runtime.sleep(LOOK_S)
        except TimeoutError:
            pass
        else:
            return
        try:
            async with asyncio.timeout(LET_GO_S):
                await self._each(await self._kept(), self._let_go)
        except (LakehouseError, TimeoutError) as error:
            logger.warning("finalizers may be left. error=%s", error or "no time")

    async def _is_ending(self) -> bool:
        """Whether our namespace was found being deleted; whatever else is the case, nothing here may be."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ASK_S):
                while True:
                    try:
                        body = await self._kube.get(NAMESPACE, None, self._namespace)
                    except LakehouseError as error:
                        logger.warning("cannot ask whether our namespace is being deleted. error=%s", error)
                        await self._runtime.sleep(LOOK_S)
                    else:
                        return body is not None and bool(body["metadata"].get("deletionTimestamp"))
        return False

    async def _clean_up(self) -> bool:
        """One look: all that we keep is on its way out, and its turns know; whether anything was there."""
        try:
            kept = await self._kept()
        except LakehouseError as error:
            logger.warning("cannot list what is there: trying again. error=%s", error)
            return True
        for body in kept:
            self._seen(body)
        await self._each([body for body in kept if not finalizers.is_going(body)], self._delete)
        return bool(kept)

    async def _kept(self) -> Sequence[Body]:
        """What our finalizer is on, or soon may be, as it is now: a watch may be behind."""
        listed = [one for kind in RESOURCES for one in await self._kube.list(kind, self._namespace)]
        return [body for body in listed if finalizers.holds(body) or finalizers.is_asked_for(body)]

    async def _delete(self, body: Body) -> None:
        kind, _, name = key_of(body)
        await self._kube.delete(KINDS[kind], self._namespace, name, body["metadata"]["uid"])

    async def _let_go(self, body: Body) -> None:
        key, uid = key_of(body), str(body["metadata"]["uid"])
        logger.warning("the data was left where it is: no time to remove it. resource=%s/%s/%s", *key)
        await self._delete(body)
        there = await self._kube.get(KINDS[key[0]], *key[1:])
        if there is not None:
            self._cache.put(there)
            await finalizers.remove(self._kube, self._cache, key, uid)

    async def _each(self, bodies: Sequence[Body], act: Callable[[Body], Awaitable[None]]) -> None:
        """Do something to all, some at a time; what fails is told, and the rest goes on."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(body: Body) -> None:
            async with gate:
                try:
                    await act(body)
                except LakehouseError as error:
                    logger.warning("cannot let go. resource=%s/%s/%s error=%s", *key_of(body), error)

        await asyncio.gather(*(one(body) for body in bodies))
