"""What a schema cannot say about a resource: that its schedule fires, that its time zone exists.

Told when it is applied, where that can be refused, and as `Accepted=False` where the API server has let it in.  What
this module does not do: look at anything but the one resource.
"""

from collections.abc import Iterator

from lakehouse.control import schedule
from lakehouse.control.documents import Path, Problem
from lakehouse.control.kinds import DatasetSpec, Spec, VectorIndexSpec
from lakehouse.core.errors import Invalid


def problems(spec: Spec) -> tuple[Problem, ...]:
    """Everything wrong with a resource that its schema let pass."""
    if isinstance(spec, VectorIndexSpec) and spec.snapshots is not None:
        asked = spec.snapshots
        return tuple(_of_schedule(("spec", "snapshots"), asked.schedule, asked.time_zone))
    if isinstance(spec, DatasetSpec) and spec.refresh.schedule is not None:
        return tuple(_of_schedule(("spec", "refresh"), spec.refresh.schedule, spec.refresh.time_zone))
    return ()


def _of_schedule(at: Path, expression: str, zone: str) -> Iterator[Problem]:
    try:
        schedule.check_zone(zone)
    except Invalid as error:
        yield Problem((*at, "timeZone"), error.message)
        zone = "Etc/UTC"
    try:
        schedule.check(expression, zone)
    except Invalid as error:
        yield Problem((*at, "schedule"), error.message)
