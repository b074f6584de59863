"""Who may begin a Job when only so many may run: who waits longest goes first, and nobody passes.

Waiting is what a resource's own status says (`Queued`), so the line outlives the operator.  What this module does not
do: begin a Job (`starting`).
"""

from collections.abc import Iterable, Mapping
from typing import Any

from lakehouse.control import conditions
from lakehouse.control.conditions import ConditionType
from lakehouse.control.kinds import DATASET, VECTOR_INDEX
from lakehouse.control.state import PAUSE_ANNOTATION
from lakehouse_operator import jobs
from lakehouse_operator.cache import Key, key_of
from lakehouse_operator.kube import JOB
from lakehouse_operator.parts import Parts

_TOLD_IN = {VECTOR_INDEX: ConditionType.UP_TO_DATE, DATASET: ConditionType.FRESH}


def in_line(bodies: Iterable[Mapping[str, Any]]) -> list[Key]:
    """The resources that wait to begin a Job, the one that waits longest first."""
    waiting = []
    for body in bodies:
        metadata = body["metadata"]
        found = conditions.find(body.get("status") or {}, _TOLD_IN[body["kind"]])
        paused = (metadata.get("annotations") or {}).get(PAUSE_ANNOTATION) == "true"
        if found.get("reason") == "Queued" and not paused and not metadata.get("deletionTimestamp"):
            waiting.append((str(found.get("lastTransitionTime", "")), key_of(body)))
    return [key for _, key in sorted(waiting)]


def has_room(key: Key, line: list[Key], free: int) -> bool:
    """Whether a resource may begin a Job when `free` more may run."""
    ahead = line.index(key) if key in line else len(line)
    return ahead < free


class Lines:
    """The line of all resources."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    @property
    def free(self) -> int:
        """How many more Jobs may run."""
        running = sum(jobs.is_running(body) for body in self._parts.cache.resources(JOB))
        return self._parts.settings.jobs_at_once - running

    def may_begin(self, key: Key) -> bool:
        """Whether a resource may begin a Job now; those before it are called, if there is room for them."""
        cache, free = self._parts.cache, self.free
        line = in_line(body for kind in _TOLD_IN for body in cache.resources(kind))
        for other in line[: max(free, 0)]:
            if other != key:
                self._parts.call(other)
        return has_room(key, line, free)
