"""The one index of a process that serves no other: looked for until it lives, followed from then on.

Ready means loaded and caught up with the log as it was after the start; a store that goes away later changes nothing
about that, since reads go on.  A request that failed is followed by another look at once, and by one a second until
the store answers, so that what is said of the store is never much older.  Now and then it removes what killed builds
left: a pin of theirs keeps the log from being collected.  What this module does not do: answer anybody.
"""

import asyncio
import contextlib
import logging

from lakehouse.core.errors import Dropped, LakehouseError, NotFound
from lakehouse.indexes import Indexes
from lakehouse.runtime import Runtime
from lakehouse.store.reach import Reach

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""Between looks for an index that is not there or cannot be opened, and at a store that did not answer."""
FOLLOW_S = 5.0
"""Between looks at the logs while nobody reads, so that taking over as the writer has little to replay."""
HURRY_S = 0.2
"""From a look to the next at least, whatever fails: the second attempt of a request that may have been unlucky."""
RENEW_EVERY = 6
"""Looks at the logs between two at the records, which somebody else usually asks for (`/internal/…/renew`)."""
SWEEP_EVERY = 720
"""Looks between two for what killed builds left: about an hour.  Until a day has passed they are only marked."""


class KeptIndex:
    """Opens an index, keeps it open, and says whether it is served."""

    def __init__(self, indexes: Indexes, runtime: Runtime, name: str, reach: Reach | None = None) -> None:
        """`reach` is told of every request to the store of `indexes`; None where nobody wants to know."""
        self._indexes = indexes
        self._runtime = runtime
        self._name = name
        self._reach = reach
        self.ready = False
        self.detail = f"loading. index=`{name}`"

    async def run(self) -> None:
        """Look for ever; the caller cancels it."""
        looks = 0
        while True:
            looks += 1
            well = await self._look(renew=looks % RENEW_EVERY == 0)
            if well and looks % SWEEP_EVERY == 0:
                await self._indexes.sweep_unnamed(self._name)
            await self._pause(well=well)

    async def _pause(self, *, well: bool) -> None:
        """Until the next look."""
        reach = self._reach
        if reach is None:
            await self._runtime.sleep(FOLLOW_S if well else LOOK_S)
            return
        await self._runtime.sleep(HURRY_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FOLLOW_S if well and not reach.in_doubt else LOOK_S):
                await reach.doubted.wait()
        reach.doubted.clear()
        await reach.try_again(self._indexes.store)

    async def _look(self, *, renew: bool) -> bool:
        """Whether all is well."""
        try:
            collection = await self._indexes.open(self._name)
            if renew or collection.dropped:
                collection = await self._indexes.renew(self._name)
            for shard in collection.shard_list:
                await shard.refresh(collection.settings.read_deadline_s)
        except Dropped:
            return False
        except NotFound:
            self._say(ready=False, detail=f"there is no such index yet. index=`{self._name}`")
            return False
        except LakehouseError as error:
            self._say(ready=self.ready, detail=error.message)
            return False
        self._say(ready=True, detail="")
        return True

    def _say(self, *, ready: bool, detail: str) -> None:
        if (ready, detail) != (self.ready, self.detail):
            logger.info("index=%s ready=%s detail=%s", self._name, ready, detail)
        self.ready, self.detail = ready, detail
