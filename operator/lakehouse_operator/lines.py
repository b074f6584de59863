"""Who may begin a Job when only so many may run: who waits longest goes first, and nobody passes.

A Job that waits for the cluster itself (a node, an image, a Secret) soon counts no more: what one cannot have must not
hold up the others.  If it begins to run after all, one more runs for a while.
Waiting is what a resource's own status says (`Queued`), so the line outlives the operator.  What this module does not
do: begin a Job (`starting`).
"""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from lakehouse.control import conditions
from lakehouse.control.conditions import ConditionType
from lakehouse.control.kinds import DATASET, VECTOR_INDEX
from lakehouse.control.state import PAUSE_ANNOTATION
from lakehouse_operator import jobs
from lakehouse_operator.cache import Key, key_of
from lakehouse_operator.kube import JOB, POD, Body
from lakehouse_operator.parts import Parts

GRACE = timedelta(minutes=2)
"""So long a Job counts before any pod of it has run: pulling a large image takes that."""
_TOLD_IN = {VECTOR_INDEX: ConditionType.UP_TO_DATE, DATASET: ConditionType.FRESH}


def in_line(bodies: Iterable[Mapping[str, Any]]) -> list[Key]:
    """The resources that wait to begin a Job, the one that waits longest first."""
    waiting = ((since, key_of(body)) for body in bodies if (since := _waits_since(body)) is not None)
    return [key for _, key in sorted(waiting)]


def _waits_since(body: Mapping[str, Any]) -> str | None:
    """Since when a resource waits to begin a Job; None when it does not."""
    metadata = body["metadata"]
    found = conditions.find(body.get("status") or {}, _TOLD_IN[body["kind"]])
    paused = (metadata.get("annotations") or {}).get(PAUSE_ANNOTATION) == "true"
    if found.get("reason") != "Queued" or paused or metadata.get("deletionTimestamp"):
        return None
    return str(found.get("lastTransitionTime", ""))


def has_room(key: Key, line: list[Key], free: int) -> bool:
    """Whether a resource may begin a Job when `free` more may run."""
    ahead = line.index(key) if key in line else len(line)
    return ahead < free


class Lines:
    """The line of all resources."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._waiting: dict[Key, str] = {}
        """Since when; kept as statuses change, so that a turn of one resource does not cost a look at all."""
        parts.cache.listen(self._told)

    def _told(self, key: Key, body: Body | None) -> None:
        if key[0] not in _TOLD_IN:
            return
        since = None if body is None else _waits_since(body)
        if since is None:
            self._waiting.pop(key, None)
        else:
            self._waiting[key] = since

    @property
    def free(self) -> int:
        """How many more Jobs may run."""
        counted = sum(self._counts(body) for body in self._parts.cache.resources(JOB))
        return self._parts.settings.jobs_at_once - counted

    def _counts(self, job: Body) -> bool:
        if not jobs.is_running(job):
            return False
        if self._parts.runtime.now() - jobs.begun_at(job) < GRACE:
            return True
        return jobs.has_started(job, self._pods(job))

    def _pods(self, job: Body) -> list[Body]:
        meta = job["metadata"]
        labels = {**(meta.get("labels") or {}), jobs.JOB_NAME_LABEL: meta["name"]}
        return self._parts.cache.children(POD, meta["namespace"], labels)

    def may_begin(self, key: Key) -> bool:
        """Whether a resource may begin a Job now; those before it are called, if there is room for them."""
        free = self.free
        line = sorted(self._waiting, key=lambda one: (self._waiting[one], one))
        for other in line[: max(free, 0)]:
            if other != key:
                self._parts.call(other)
        return has_room(key, line, free)
