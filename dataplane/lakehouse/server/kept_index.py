"""The one index of a process that serves no other: looked for until it lives, followed from then on.

Ready means loaded and caught up with the log as it was after the start; a store that goes away later changes nothing
about that, since reads go on.  Now and then it removes what killed builds left: a pin of theirs keeps the log from
being collected.  What this module does not do: answer anybody.
"""

import logging

from lakehouse.core.errors import Dropped, LakehouseError, NotFound
from lakehouse.indexes import Indexes
from lakehouse.runtime import Runtime

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""Between looks for an index that is not there or cannot be opened."""
FOLLOW_S = 5.0
"""Between looks at the logs while nobody reads, so that taking over as the writer has little to replay."""


RENEW_EVERY = 6
"""Looks at the logs between two at the records, which somebody else usually asks for (`/internal/…/renew`)."""
SWEEP_EVERY = 720
"""Looks between two for what killed builds left: about an hour.  Until a day has passed they are only marked."""


class KeptIndex:
    """Opens an index, keeps it open, and says whether it is served."""

    def __init__(self, indexes: Indexes, runtime: Runtime, name: str) -> None:
        self._indexes = indexes
        self._runtime = runtime
        self._name = name
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
            await self._runtime.sleep(FOLLOW_S if well else LOOK_S)

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
