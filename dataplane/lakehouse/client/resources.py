"""The calls on declared resources, as `kubectl` writes them: what is wanted, and what was seen of it.

What it does not do: judge a document; the server does, with all that is wrong with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from lakehouse.client.wire import JSON, Call, Fresh, Request, json_of, path, post
from lakehouse.core import errors

DELETE_S = 150.0
"""Of a deletion that is waited for; above the server's own limit of 120 s."""
Wanted = str | Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""YAML text of one or more documents, or the documents as values."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource: what is wanted of it, and what was seen."""

    kind: str
    name: str
    body: Mapping[str, Any]
    """`apiVersion`, `kind`, `metadata`, `spec` and `status`."""
    result: str = ""
    """After an apply: `created`, `configured` or `unchanged`."""

    @property
    def spec(self) -> Mapping[str, Any]:
        spec: Mapping[str, Any] = self.body.get("spec") or {}
        return spec

    @property
    def status(self) -> Mapping[str, Any]:
        status: Mapping[str, Any] = self.body.get("status") or {}
        return status

    @property
    def conditions(self) -> Mapping[str, bool]:
        """Each condition, and whether it holds."""
        return {one["type"]: one["status"] == "True" for one in self.status.get("conditions", ())}

    @property
    def ready(self) -> bool:
        """Whether it is as wanted and answers."""
        return self.conditions.get("Ready", False)


def documents(wanted: Wanted) -> tuple[Mapping[str, Any], ...]:
    """The documents in what was given.  Raises `Invalid` where it is no YAML or no resource."""
    given = _parsed(wanted) if isinstance(wanted, str) else wanted
    values = [given] if isinstance(given, Mapping) else list(given)
    for value in values:
        identity(value)
    return tuple(values)


def _parsed(text: str) -> Sequence[Any]:
    from lakehouse.control.documents import parse  # here: YAML takes time to import, and values need none

    return [document.body for document in parse(text)]


def identity(document: Any) -> tuple[str, str]:
    """(kind, name) of a document.  Raises `Invalid`."""
    metadata = document.get("metadata") if isinstance(document, Mapping) else None
    kind = document.get("kind") if isinstance(document, Mapping) else None
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    if not isinstance(kind, str) or not isinstance(name, str) or not kind or not name:
        raise errors.Invalid("a resource is a document with a `kind` and a `metadata.name`")
    return kind, name


# --- the calls ----------------------------------------------------------------------------------------------


def apply(document: Mapping[str, Any], *, dry_run: bool = False) -> Call[Resource]:
    """Create one resource, or bring it in line; the same document again changes nothing."""
    kind, name = identity(document)
    request = Request(
        "PUT",
        path("resources", kind, name),
        {"dry_run": "true"} if dry_run else {},
        {"content-type": JSON},
        orjson.dumps(document, default=str),
    )
    return Call(request, _read_applied)


def list_resources(fresh: Fresh, kind: str | None = None) -> Call[tuple[Resource, ...]]:
    """The resources of one kind (`VectorIndex`, `Dataset`, `IndexSnapshot`), or all."""
    parts = ("resources",) if kind is None else ("resources", kind)
    return Call(
        Request("GET", path(*parts)), lambda answer: tuple(map(resource_of, json_of(answer)["items"]))
    )


def get_resource(fresh: Fresh, kind: str, name: str) -> Call[Resource]:
    """One resource, with its status.  Raises `NotFound`."""
    return Call(Request("GET", path("resources", kind, name)), lambda answer: resource_of(json_of(answer)))


def resource_events(fresh: Fresh, kind: str, name: str) -> Call[tuple[Mapping[str, Any], ...]]:
    """What happened to a resource lately, oldest first."""
    return Call(
        Request("GET", path("resources", kind, name, "events")),
        lambda answer: tuple(json_of(answer)["events"]),
    )


def delete_resource(fresh: Fresh, kind: str, name: str, *, wait: bool = False) -> Call[bool]:
    """Ask for a resource to go; whether it is gone.  `wait` waits for that, two minutes at most."""
    request = Request(
        "DELETE", path("resources", kind, name), {"wait": "true"} if wait else {}, timeout_s=DELETE_S
    )
    return Call(request, lambda answer: json_of(answer)["result"] == "deleted")


def diff_resources(fresh: Fresh, wanted: Wanted) -> Call[tuple[Mapping[str, Any], ...]]:
    """What applying each document would change: `result`, `resource` as it would be, `before`."""
    return Call(
        post("/v1/resources/diff", {"documents": list(documents(wanted))}),
        lambda answer: tuple(json_of(answer)["differences"]),
    )


# --- what comes back ----------------------------------------------------------------------------------------


def resource_of(body: Mapping[str, Any], result: str = "") -> Resource:
    """A resource as the server tells it."""
    return Resource(str(body["kind"]), str(body["metadata"]["name"]), body, result)


def _read_applied(answer: httpx.Response) -> Resource:
    body = json_of(answer)
    return resource_of(body["resource"], body["result"])
