"""The catalog routes: versions of datasets, and the rows that did not get into them.

What they do not do: look at the objects a manifest names.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson

from lakehouse.catalog import Catalog
from lakehouse.core.errors import Invalid, NotFound
from lakehouse.core.manifest import Manifest, Registration, checked_registration, parse_reference
from lakehouse.ingest import Reject, read_rejects
from lakehouse.runtime import Runtime
from lakehouse.server import json_body
from lakehouse.server.declared import check_dataset_not_declared, no_resource
from lakehouse.server.http import Request, Response, media_types, whole_json_response
from lakehouse.server.json_body import Decoder, RegisterBody
from lakehouse.store.base import ObjectStore

BODY_BYTES_MAX = 4 << 20
"""The old contract's limit."""
VERSIONS_MAX = 1_000
"""Versions in one answer, the newest ones; each costs a read."""
REJECTS_MAX = 10_000
"""Rejected rows in one answer."""
REJECTS_DEFAULT = 1_000
NDJSON = b"application/x-ndjson"

decode_register = Decoder(RegisterBody)


class CatalogApi:
    """Handlers named as the routes are."""

    def __init__(
        self,
        catalog: Catalog,
        store: ObjectStore,
        runtime: Runtime,
        scratch: Path | None,
        declares: Callable[[str], str | None] = no_resource,
    ) -> None:
        """`declares` tells the resource that declares a dataset."""
        self._catalog = catalog
        self._store = store
        self._runtime = runtime
        self._scratch = scratch
        self._declares = declares

    async def register(self, request: Request) -> Response:
        """Register a dataset's objects under the fingerprint of their schema."""
        registration = registration_of(await request.body(BODY_BYTES_MAX))
        check_dataset_not_declared(self._declares(registration.name), registration.name)
        done = await self._catalog.register(registration)
        return whole_json_response({"manifest": done.manifest.to_json(), "existing": done.existing})

    async def manifest(self, request: Request) -> Response:
        """The manifest of a dataset: the newest, or that of `?version=`, or of `name@v3`."""
        return whole_json_response((await self._asked(request)).to_json())

    async def versions(self, request: Request) -> Response:
        """The manifests of a dataset, oldest first."""
        name = request.params["dataset"]
        numbers = await self._catalog.versions(name)
        found = []
        for number in numbers[-VERSIONS_MAX:]:
            with contextlib.suppress(NotFound):  # retired a moment ago
                found.append((await self._catalog.manifest(name, number)).to_json())
        return whole_json_response({"name": name, "versions": found, "count": len(numbers)})

    async def rejects(self, request: Request) -> Response:
        """A page of the rows that could not be read."""
        asked = request.query()
        offset = _number(asked, "offset", 0, (1 << 63) - 1)
        limit = _number(asked, "limit", REJECTS_DEFAULT, REJECTS_MAX)
        found = await self._asked(request)
        rows = await self._rejected(found, offset, limit) if limit else []
        page = [
            {"source": r.source, "line": r.line, "column": r.column, "error": r.error, "text": r.text}
            for r in rows
        ]
        if NDJSON in media_types(request.headers.get(b"accept", b"")):
            return Response(200, b"".join(orjson.dumps(row) + b"\n" for row in page), NDJSON)
        count = 0 if found.rejects is None else found.rejects.count
        return whole_json_response(
            {
                "name": found.name,
                "version": found.version,
                "count": count,
                "offset": offset,
                "rejects": page,
            }
        )

    async def drop(self, request: Request) -> Response:
        """Delete a dataset with all its versions."""
        name = request.params["dataset"]
        check_dataset_not_declared(self._declares(name), name)
        await self._catalog.drop(name)
        return Response(204)

    async def list(self, request: Request) -> Response:
        """The newest manifest of every dataset."""
        manifests = [found.to_json() for found in await self._catalog.list()]
        return whole_json_response({"manifests": manifests, "count": len(manifests)})

    async def _asked(self, request: Request) -> Manifest:
        """The manifest a request names; a dataset may really be called `x@v3`, so that name comes first."""
        name = request.params["dataset"]
        if "version" in request.query():
            return await self._catalog.manifest(name, _number(request.query(), "version", 1, 10**18 - 1, 1))
        try:
            return await self._catalog.manifest(name)
        except NotFound:
            plain, version = parse_reference(name)
            if version is None:
                raise
        return await self._catalog.manifest(plain, version)

    async def _rejected(self, found: Manifest, offset: int, limit: int) -> Sequence[Reject]:
        if found.rejects is None:
            return []
        run = self._runtime.run_io
        folder = await run(tempfile.mkdtemp, None, "rejects-", self._scratch)
        path = Path(folder) / "rejects.parquet"
        try:
            await self._store.download(found.rejects.key, path)
            return await run(read_rejects, path, offset, limit)
        finally:
            with contextlib.suppress(FileNotFoundError):
                await run(path.unlink)
            await run(os.rmdir, folder)


def registration_of(body: bytes) -> Registration:
    """What a body asks to be registered.  Raises `Invalid`."""
    json_body.check_utf8(body)
    json_body.check_nesting(body, "the body")
    asked: RegisterBody = decode_register(body)
    return checked_registration(
        asked.name, asked.schema_fingerprint, tuple(asked.objects or ()), asked.row_count
    )


def _number(asked: dict[str, str], name: str, default: int, most: int, least: int = 0) -> int:
    value = asked.get(name)
    if value is None:
        return default
    if not (value.isascii() and value.isdigit() and len(value) < 20 and least <= int(value) <= most):
        raise Invalid(f"{name} is a whole number from {least} to {most}. {name}=`{value}`")
    return int(value)
