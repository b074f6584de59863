"""Kinds and resources as the command line names and shows them: names in any form, columns, ages, lines.

What it does not do: talk to a server.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from lakehouse.control import packaged
from lakehouse.control.crd import Column, Definition
from lakehouse.control.kinds import INDEX_SNAPSHOT, VECTOR_INDEX
from lakehouse.embedded.known import definition

__all__ = [
    "age",
    "columns",
    "condition",
    "definition",
    "header",
    "kind_names",
    "label",
    "lines",
    "refused",
    "row",
    "settled",
    "summary",
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


def lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines whose columns stand below each other."""
    widths = [max(len(line[j]) for line in rows) for j in range(len(rows[0]))]
    return [
        "".join(cell.ljust(width + GAP) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in rows
    ]


def condition(resource: Mapping[str, Any], wanted: str) -> Mapping[str, Any]:
    """A condition of a resource; empty when it has none of that type."""
    found: Sequence[Mapping[str, Any]] = resource.get("status", {}).get("conditions", ())
    return next((one for one in found if one["type"] == wanted), {})


def settled(resource: Mapping[str, Any]) -> bool:
    """Whether the newest wish was looked at and is fulfilled."""
    status = resource.get("status", {})
    if status.get("observedGeneration") != resource["metadata"]["generation"]:
        return False
    wanted = {VECTOR_INDEX: ("Ready", "UpToDate"), INDEX_SNAPSHOT: ("Complete",)}
    return all(
        condition(resource, one).get("status") == "True"
        for one in wanted.get(str(resource["kind"]), ("Ready",))
    )


def refused(resource: Mapping[str, Any]) -> str:
    """Why it never will be, as long as nobody changes it; empty when it still may."""
    accepted = condition(resource, "Accepted")
    return str(accepted.get("message", "")) if accepted.get("status") == "False" else ""


def summary(resource: Mapping[str, Any]) -> str:
    """Where a resource stands, in half a line."""
    status = resource.get("status", {})
    current = status.get("current")
    if current:
        return f"version {current['version']}, {current.get('rows') or 0:,} rows"
    if "items" in status:
        return f"{status['items']:,} items"
    return ""
