"""Kinds and resources as the command line names and shows them: names in any form, columns, ages, lines.

What it does not do: talk to a server.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from lakehouse.control import packaged
from lakehouse.control.crd import Column, Definition
from lakehouse.control.index_snapshot import FINAL
from lakehouse.control.kinds import DATASET, INDEX_SNAPSHOT, VECTOR_INDEX, Follow
from lakehouse.embedded.known import definition

__all__ = [
    "age",
    "columns",
    "condition",
    "definition",
    "followed",
    "header",
    "kind_names",
    "label",
    "lines",
    "refused",
    "rest",
    "row",
    "settled",
    "standing",
    "summary",
    "widths_of",
]

NONE = "<none>"
GAP = 3
"""Spaces between columns, as kubectl has them."""


def kind_names() -> list[str]:
    """What completion offers."""
    return [one.singular for one in packaged.definitions().values()]


def label(resource: Mapping[str, Any]) -> str:
    """`vectorindex/packages`."""
    return f"{str(resource['kind']).lower()}/{resource['metadata']['name']}"


def row(
    kind: Definition, resource: Mapping[str, Any], now: datetime, *, wide: bool, named: bool
) -> tuple[str, ...]:
    """The cells of one resource: its name, then its kind's columns."""
    name = label(resource) if named else str(resource["metadata"]["name"])
    return (name, *(_cell(column, resource, now) for column in columns(kind, wide=wide)))


def columns(kind: Definition, *, wide: bool) -> list[Column]:
    """The columns of a kind; those for a wide table only when asked."""
    return [column for column in kind.columns if wide or not column.wide]


def header(kind: Definition, *, wide: bool) -> tuple[str, ...]:
    """The head of a kind's table."""
    return ("NAME", *(column.name.upper() for column in columns(kind, wide=wide)))


def _cell(column: Column, resource: Mapping[str, Any], now: datetime) -> str:
    value = column.value(resource)
    if value is None or value == "":
        return NONE
    return age(str(value), now) if column.type == "date" else str(value)


def age(moment: str, now: datetime) -> str:
    """How long ago, in two units at most: `8s`, `5m12s`, `3h5m`, `2d4h`."""
    seconds = max(0, int((now - datetime.fromisoformat(moment)).total_seconds()))
    for size, name, smaller, smaller_name in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if seconds >= size:
            rest = seconds % size // smaller
            return f"{seconds // size}{name}" + (f"{rest}{smaller_name}" if rest else "")
    return f"{seconds}s"


def lines(rows: Sequence[Sequence[str]], widths: Sequence[int] = ()) -> list[str]:
    """Rows as lines whose columns stand below each other, and below those of `widths`."""
    wide = widths_of(rows, widths)
    return [
        "".join(cell.ljust(width + GAP) for cell, width in zip(line, wide, strict=True)).rstrip()
        for line in rows
    ]


def widths_of(rows: Sequence[Sequence[str]], widths: Sequence[int] = ()) -> list[int]:
    """How wide each column is, at least as wide as in `widths`."""
    columns = zip(*rows, strict=True)
    return [
        max(least, *map(len, cells))
        for least, cells in zip(widths or [0] * len(rows[0]), columns, strict=True)
    ]


def standing(kind: Definition, resource: Mapping[str, Any], *, wide: bool) -> tuple[Any, ...]:
    """What its columns say, ages aside: while it stays, nobody needs to be told again."""
    values = [(column, column.value(resource)) for column in columns(kind, wide=wide)]
    return tuple(value is None if column.type == "date" else value for column, value in values)


def condition(resource: Mapping[str, Any], wanted: str) -> Mapping[str, Any]:
    """A condition of a resource; empty when it has none of that type."""
    found: Sequence[Mapping[str, Any]] = resource.get("status", {}).get("conditions", ())
    return next((one for one in found if one["type"] == wanted), {})


_SETTLED = {
    VECTOR_INDEX: ("Ready", "UpToDate"),
    DATASET: ("Ready", "Fresh"),
    INDEX_SNAPSHOT: ("Complete",),
}


def settled(resource: Mapping[str, Any], dataset: Mapping[str, Any] | None = None) -> bool:
    """Whether the newest wish was looked at and is fulfilled; one to rest is fulfilled by resting.

    An index that follows `dataset` is not before it holds the version that the dataset has now.
    """
    kind, generation = str(resource["kind"]), resource["metadata"]["generation"]
    found = [condition(resource, one) for one in _SETTLED[kind]]
    if any(one.get("observedGeneration") != generation for one in found):
        return False
    if _resting(resource["spec"]):
        return any(one.get("reason") == "Suspended" for one in found)
    return all(one["status"] == "True" for one in found) and _has_what(resource, dataset)


def rest(resource: Mapping[str, Any]) -> str:
    """How a settled resource is called: `ready`, or `suspended` where that was asked for."""
    return "suspended" if _resting(resource["spec"]) else "ready"


def _resting(spec: Mapping[str, Any]) -> bool:
    return bool(spec.get("suspend") or spec.get("refresh", {}).get("suspend"))


def _has_what(resource: Mapping[str, Any], dataset: Mapping[str, Any] | None) -> bool:
    current = (dataset or {}).get("status", {}).get("current")
    if current is None:
        return True
    return bool(resource["status"].get("source", {}).get("version") == current["version"])


def followed(resource: Mapping[str, Any]) -> str | None:
    """The dataset that an index goes with."""
    source = resource["spec"].get("source", {}).get("dataset", {})
    return str(source["name"]) if source.get("follow") == Follow.LATEST.value else None


def refused(resource: Mapping[str, Any]) -> str:
    """Why it never will be, as long as nobody changes it; empty when it still may."""
    accepted, complete = condition(resource, "Accepted"), condition(resource, "Complete")
    if accepted.get("observedGeneration") != resource["metadata"]["generation"]:
        return ""
    if accepted.get("status") == "False":
        return f"is not accepted: {accepted.get('message', '')}"
    if complete.get("reason") in FINAL:
        return f"has failed for good: {complete.get('message', '')}"
    return ""


def summary(resource: Mapping[str, Any]) -> str:
    """Where a resource stands, in half a line."""
    status = resource.get("status", {})
    current = status.get("current")
    if current:
        return f"version {current['version']}, {_counted(current.get('rows') or 0, 'row')}"
    return _counted(status["items"], "item") if "items" in status else ""


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
