"""Pods that have a Secret as files are told when it changes, so that they have it in seconds.

The kubelet brings a changed Secret to a pod that nothing else happens to after 60 to 90 s; a change of the pod's
annotations makes it look at once.  So a pod gets one annotation per Secret, the version that it is to have, written
once per version.  A pod that says that version already, or that began after the change was seen, is left alone.

Which version a pod has mounted is not known when this process begins.  It is left alone then, unless it was told of
another version before, for the operators before this one saw every change but those of the moment between them; and
who missed such a change says so: a pod that is refused (`doubt`) is told of the version that the Secret has now.

What this module does not do: watch Secrets, which would take the right to list them all; or raise anything.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lakehouse.core.errors import Conflict, LakehouseError, NotFound
from lakehouse.log import Backoff
from lakehouse_operator import names
from lakehouse_operator.kube import POD, SECRET, Body
from lakehouse_operator.parts import Parts

logger = logging.getLogger(__name__)

LOOK_S = 5.0
"""Between two readings of a Secret that pods are in doubt of."""
PACE_S = 0.5
"""What comes within it is done together."""
RETRY = Backoff(first_s=1.0, most_s=60.0)
"""Of each Secret: where we may not tell pods, as in a namespace that is going, others are told meanwhile."""
AT_ONCE = 8
"""Pods told at once: 200 take about a second, and leave connections for others."""

Place = tuple[str, str]
"""Namespace and name of a Secret."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a Secret."""

    version: str
    """Its resourceVersion."""
    changed_at: datetime | None = None
    """When this process saw that it had changed; None: it has not since it was seen first."""


def seen_again(known: Seen | None, version: str, now: datetime) -> Seen:
    """After a look at the Secret."""
    if known is None:
        return Seen(version)
    return known if _number(version) <= _number(known.version) else Seen(version, now)


def _number(version: str) -> int:
    # Looks overlap, and one that began earlier may end later; versions rise, as `cache` says.
    return int(version) if version.isdigit() else 0


def is_stale(pod: Mapping[str, Any], secret: str, seen: Seen, doubting: bool = False) -> bool:
    """Whether a pod that has a Secret as files is to be told of the version that was seen."""
    metadata = pod["metadata"]
    told = (metadata.get("annotations") or {}).get(names.mounted_annotation(secret))
    if told is not None or doubting:
        return bool(told != seen.version)
    if seen.changed_at is None:
        return False
    return datetime.fromisoformat(metadata["creationTimestamp"]) <= seen.changed_at


def mounts(pod: Mapping[str, Any], secret: str) -> bool:
    """Whether a pod has a Secret as files, and goes on."""
    if pod["metadata"].get("deletionTimestamp"):
        return False
    if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return False
    volumes = (pod.get("spec") or {}).get("volumes") or ()
    return any((one.get("secret") or {}).get("secretName") == secret for one in volumes)


class Mounts:
    """Tells pods, in the background."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._seen: dict[Place, Seen] = {}
        self._looked_s: dict[Place, float] = {}
        """When a Secret was last looked at by anybody, on the monotonic clock."""
        self._due: dict[Place, set[str]] = {}
        """Secrets whose pods are to be looked through, with the names of those that are in doubt of it."""
        self._failed: dict[Place, tuple[int, float]] = {}
        """How often in a row telling them has failed, and when it is tried again."""
        self._called = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = self._parts.runtime.spawn(self._keep(), name="mounts")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def seen(self, namespace: str, secret: str, version: str) -> None:
        """A Secret has this version; told the same again, this does nothing."""
        place = (namespace, secret)
        before = self._seen.get(place)
        self._seen[place] = found = seen_again(before, version, self._parts.runtime.now())
        self._looked_s[place] = self._parts.runtime.monotonic()
        if found is not before:
            if before is not None:
                logger.info("a Secret has changed. secret=%s/%s", namespace, secret)
            self._call(place)

    def doubt(self, namespace: str, secret: str, pod: str) -> None:
        """A pod is refused, or refuses: what it has of the Secret may be old."""
        self._call((namespace, secret), pod)

    def _call(self, place: Place, *doubting: str) -> None:
        self._due.setdefault(place, set()).update(doubting)
        self._called.set()

    # ---------------------------------------------------------------- telling

    async def _keep(self) -> None:
        while True:
            await self._called.wait()
            self._called.clear()
            for place in [place for place in self._due if self._may_try(place)]:
                await self._try(place, self._due.pop(place))
            await self._parts.runtime.sleep(PACE_S)
            if self._due:
                self._called.set()

    def _may_try(self, place: Place) -> bool:
        _, at_s = self._failed.get(place, (0, float("-inf")))
        return self._parts.runtime.monotonic() >= at_s

    async def _try(self, place: Place, doubting: set[str]) -> None:
        """Tell the pods of a Secret, now or later."""
        runtime, (times, _) = self._parts.runtime, self._failed.pop(place, (0, 0.0))
        try:
            await self._tell(place, doubting)
        except LakehouseError as error:
            if not times:
                logger.warning(
                    "pods not told of a Secret: trying again. secret=%s/%s error=%s", *place, error
                )
            self._failed[place] = (times + 1, runtime.monotonic() + RETRY.delay_s(times, runtime))
            self._call(place, *doubting)
        except Exception:
            logger.exception("pods not told of a Secret. secret=%s/%s", *place)

    async def _tell(self, place: Place, doubting: set[str]) -> None:
        """Tell every pod that has an old version.  Raises what the API server does."""
        namespace, secret = place
        pods = [pod for pod in self._parts.cache.resources(POD, namespace) if mounts(pod, secret)]
        if any(pod["metadata"]["name"] in doubting for pod in pods):
            await self._look(place)
        seen = self._seen.get(place)
        if seen is None:
            return
        stale = [pod for pod in pods if is_stale(pod, secret, seen, pod["metadata"]["name"] in doubting)]
        gate = asyncio.Semaphore(AT_ONCE)
        told = [self._patch(pod, secret, seen.version, gate) for pod in stale]
        for one in await asyncio.gather(*told, return_exceptions=True):
            if isinstance(one, BaseException):
                raise one
        if stale:
            logger.info("told pods of a Secret. secret=%s/%s pods=%s", *place, len(stale))

    async def _look(self, place: Place) -> None:
        """At a Secret that nobody has looked at lately."""
        if self._parts.runtime.monotonic() - self._looked_s.get(place, float("-inf")) < LOOK_S:
            return
        body = await self._parts.kube.get(SECRET, *place)
        if body is not None:
            self.seen(*place, str(body["metadata"]["resourceVersion"]))

    async def _patch(self, pod: Body, secret: str, version: str, gate: asyncio.Semaphore) -> None:
        metadata = pod["metadata"]
        said = {"uid": metadata["uid"], "annotations": {names.mounted_annotation(secret): version}}
        async with gate:
            try:
                written = await self._parts.kube.patch_metadata(
                    POD, metadata["namespace"], metadata["name"], said
                )
            except (NotFound, Conflict):  # it has gone, and perhaps another has its name
                return
        self._parts.cache.put(written)
