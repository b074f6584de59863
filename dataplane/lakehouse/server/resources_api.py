"""The resources routes: what was applied, what is seen of it, and new wishes.

A plain server keeps no resources and says which command does.  What this module does not do: judge a document or
act on it; the controller does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from lakehouse.core.errors import Invalid, NotFound
from lakehouse.server import json_body, problem
from lakehouse.server.declared import Applied, Controller, InvalidDocument
from lakehouse.server.http import AnyResponse, Request, Response, whole_json_response

BODY_BYTES_MAX = 1 << 20
"""As much as the Kubernetes API takes of one object, within a factor of two."""
DOCUMENTS_MAX = 1_000
WAIT_S_MAX = 120.0
"""Longest that a deletion is waited for; afterwards the answer says that it goes on."""
MISSING = (
    "this server keeps no declared resources: start it with `lakehouse up`, or apply them with kubectl where the "
    "operator runs"
)


class ResourcesApi:
    """Handlers named as the routes are."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def list(self, request: Request) -> Response:
        """Every resource."""
        return _items(await self._controller.items(None))

    async def of_kind(self, request: Request) -> Response:
        """The resources of one kind."""
        return _items(await self._controller.items(request.params["kind"]))

    async def get(self, request: Request) -> Response:
        """One resource: what is wanted, and what was seen."""
        return whole_json_response(
            await self._controller.item(request.params["kind"], request.params["name"])
        )

    async def events(self, request: Request) -> Response:
        """What happened to a resource lately."""
        events = await self._controller.events(request.params["kind"], request.params["name"])
        return whole_json_response({"events": events, "count": len(events)})

    async def apply(self, request: Request) -> Response:
        """Create a resource, or bring it in line with a document."""
        document = _object(await self._body(request), "the body")
        dry_run = request.flag("dry_run")
        try:
            applied = await self._controller.apply(
                request.params["kind"], request.params["name"], document, dry_run=dry_run
            )
        except InvalidDocument as error:
            return problem.response(400, error.message, request.request_id, problems=error.problems)
        status = 201 if applied.result == "created" and not dry_run else 200
        return whole_json_response(_applied_json(applied), status)

    async def delete(self, request: Request) -> Response:
        """Ask for a resource to go; 200 once it is gone, 202 while it goes."""
        kind, name = request.params["kind"], request.params["name"]
        wait_s = WAIT_S_MAX if request.flag("wait") else 0.0
        gone = await self._controller.delete(kind, name, wait_s=wait_s)
        return whole_json_response({"result": "deleted" if gone else "deleting"}, 200 if gone else 202)

    async def diff(self, request: Request) -> Response:
        """What applying each document would change."""
        body = _object(await self._body(request), "the body")
        documents = body.get("documents")
        if not isinstance(documents, list) or not 1 <= len(documents) <= DOCUMENTS_MAX:
            raise Invalid(f"`documents` is a list of 1 to {DOCUMENTS_MAX} resources")
        found = []
        for j, value in enumerate(documents):
            document = _object(value, f"documents[{j}]")
            kind, name = _identity(document, f"documents[{j}]")
            try:
                applied = await self._controller.apply(kind, name, document, dry_run=True)
            except InvalidDocument as error:
                return problem.response(400, error.message, request.request_id, problems=error.problems)
            found.append(_applied_json(applied) | {"before": applied.before})
        return whole_json_response({"differences": found})

    async def _body(self, request: Request) -> Any:
        body = await request.body(BODY_BYTES_MAX)
        json_body.check_utf8(body)
        json_body.check_nesting(body, "the body")
        try:
            return msgspec.json.decode(body)
        except msgspec.DecodeError as error:
            raise Invalid(f"the body is not JSON: {error}") from error


class NoResourcesApi:
    """The same handlers where nobody keeps resources: each says what to do instead."""

    async def _missing(self, request: Request) -> AnyResponse:
        raise NotFound(MISSING)

    list = of_kind = get = events = apply = delete = diff = _missing


def _items(items: Sequence[Mapping[str, Any]]) -> Response:
    return whole_json_response({"items": items, "count": len(items)})


def _object(value: Any, label: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Invalid(f"{label} is a JSON object with `apiVersion`, `kind`, `metadata` and `spec`")
    return value


def _identity(document: Mapping[str, Any], label: str) -> tuple[str, str]:
    metadata = document.get("metadata")
    kind, name = document.get("kind"), metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(kind, str) or not isinstance(name, str):
        raise Invalid(f"{label} needs a `kind` and a `metadata.name`")
    return kind, name


def _applied_json(applied: Applied) -> dict[str, Any]:
    return {"result": applied.result, "resource": applied.resource}
