"""Who waits longest for a Job begins first, and nobody passes."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cluster_samples import NOW, settings
from lakehouse.control.state import PAUSE_ANNOTATION
from lakehouse_operator import jobs, lines, names
from lakehouse_operator.cache import Cache, Key
from lakehouse_operator.parts import Parts

A, B, C = (("Dataset", "shop", name) for name in "abc")


def waiting(name: str, since: str, reason: str = "Queued", **metadata: Any) -> dict[str, Any]:
    found = [{"type": "Fresh", "status": "False", "reason": reason, "lastTransitionTime": since}]
    meta = {"name": name, "namespace": "shop", **metadata}
    return {"kind": "Dataset", "metadata": meta, "status": {"conditions": found}}


def test_the_line_is_in_order_of_waiting() -> None:
    assert lines.in_line(
        [waiting("a", "12:02"), waiting("b", "12:01"), waiting("c", "12:00", "Refreshed")]
    ) == [B, A]


def test_who_is_paused_or_to_go_holds_up_nobody() -> None:
    paused = waiting("a", "12:00", annotations={PAUSE_ANNOTATION: "true"})
    assert lines.in_line(
        [paused, waiting("b", "12:01", deletionTimestamp="12:05"), {**waiting("c", "x")}]
    ) == [C]


def test_the_line_follows_what_statuses_say() -> None:
    called: list[Key] = []
    cache = Cache()
    unused: Any = None
    parts = Parts(settings(jobs_at_once=1), unused, unused, cache, unused, "home", called.append)

    def put(body: dict[str, Any], version: int) -> None:
        cache.put({**body, "metadata": {**body["metadata"], "resourceVersion": str(version)}})

    put(waiting("a", "12:01"), 1)
    line = lines.Lines(parts)
    put(waiting("b", "12:00"), 2)
    assert not line.may_begin(A)
    assert called == [B]
    put(waiting("b", "12:00", "Refreshing"), 3)
    assert line.may_begin(A)
    cache.remove(A)
    assert line.may_begin(B)


@dataclass
class Clock:
    """Says what time it is."""

    time: datetime

    def now(self) -> datetime:
        return self.time


def test_a_job_that_cannot_start_soon_holds_up_nobody() -> None:
    unused: Any = None
    clock: Any = Clock(NOW)
    cache = Cache()
    parts = Parts(settings(jobs_at_once=1), clock, unused, cache, unused, "home", lambda _: None)
    line = lines.Lines(parts)
    meta = {"name": "a-ingest-1", "namespace": "shop", "labels": {names.DATASET_LABEL: "a"}}
    begun = NOW.isoformat()
    body = {"kind": "Job", "metadata": {**meta, "resourceVersion": "1", "creationTimestamp": begun}}
    cache.put({**body, "status": {"startTime": begun}})
    clock.time = NOW + lines.GRACE - timedelta(seconds=1)
    assert not line.may_begin(B)
    clock.time = NOW + lines.GRACE
    assert line.may_begin(B)
    labels = {names.DATASET_LABEL: "a", jobs.JOB_NAME_LABEL: "a-ingest-1"}
    pod = {"name": "p", "namespace": "shop", "labels": labels, "resourceVersion": "2"}
    status = {"containerStatuses": [{"state": {"running": {"startedAt": begun}}}]}
    cache.put({"kind": "Pod", "metadata": pod, "status": status})
    assert not line.may_begin(B)  # it runs after all


def test_nobody_passes() -> None:
    assert lines.has_room(A, [], 1)
    assert not lines.has_room(A, [], 0)
    assert not lines.has_room(C, [A], 1)  # a newcomer
    assert lines.has_room(A, [A, B], 1)
    assert not lines.has_room(B, [A, B], 1)
    assert lines.has_room(B, [A, B], 2)
