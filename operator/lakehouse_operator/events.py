"""News about resources, as core/v1 Events: the same news counts up for a while instead of filling the list.

Events are for people and may be lost; a turn never fails because one could not be written.  What this module does not
do: decide what is news; plans do.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from lakehouse.control.conditions import timestamp
from lakehouse.control.plan import Event
from lakehouse.core.errors import LakehouseError
from lakehouse.runtime import Runtime
from lakehouse_operator import names
from lakehouse_operator.kube import FIELD_MANAGER, Body, Kube

logger = logging.getLogger(__name__)

SAME = timedelta(minutes=10)
"""The same news within so long of its last time counts up; later it is news again."""
KNOWN_MAX = 4_096
"""News remembered, the latest of them; the rest is counted from one again."""
MESSAGE_MAX = 1_024
"""As the API server allows."""
NAME_MAX = 253
"""The same."""


@dataclass(frozen=True, slots=True)
class _Told:
    """What was last written of one piece of news."""

    count: int
    first: str
    at: datetime


class Recorder:
    """Writes Events."""

    def __init__(self, kube: Kube, runtime: Runtime, instance: str) -> None:
        self._kube = kube
        self._runtime = runtime
        self._instance = instance
        self._told: dict[str, _Told] = {}
        """By the Event's name, the one told last at the end."""

    async def record(self, about: Body, news: Sequence[Event]) -> None:
        """Tell news about an object.  Raises nothing."""
        for event in news:
            try:
                await self._record(about, event)
            except LakehouseError as error:
                name = about["metadata"]["name"]
                logger.warning("event not written. resource=%s reason=%s error=%s", name, event.reason, error)

    async def _record(self, about: Body, event: Event) -> None:
        now, name = self._runtime.now(), _name(about, event)
        told = _again(self._told.pop(name, None), now)
        await self._kube.apply(self._body(about, event, name, told))
        self._told[name] = told
        while len(self._told) > KNOWN_MAX:
            del self._told[next(iter(self._told))]

    def _body(self, about: Body, event: Event, name: str, told: _Told) -> Body:
        metadata = about["metadata"]
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": about["apiVersion"],
                "kind": about["kind"],
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
            },
            "type": event.type.value,
            "reason": event.reason,
            "message": event.message[:MESSAGE_MAX],
            "count": told.count,
            "firstTimestamp": told.first,
            "lastTimestamp": timestamp(told.at),
            "source": {"component": FIELD_MANAGER},
            "reportingComponent": FIELD_MANAGER,
            "reportingInstance": self._instance,
        }


def _again(told: _Told | None, now: datetime) -> _Told:
    if told is None or now - told.at > SAME:
        return _Told(1, timestamp(now), now)
    return _Told(told.count + 1, told.first, now)


def _name(about: Body, event: Event) -> str:
    """The same for the same news of the same object, whoever tells it."""
    what = "\0".join((about["metadata"]["uid"], event.type.value, event.reason, event.message))
    return names.fitted(
        about["metadata"]["name"], f".{hashlib.sha256(what.encode()).hexdigest()[:16]}", NAME_MAX
    )
