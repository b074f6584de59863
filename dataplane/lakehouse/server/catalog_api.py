"""The catalog routes.  What they do not do: look at the objects a manifest names."""

from lakehouse.catalog import Catalog
from lakehouse.core.manifest import checked_registration
from lakehouse.server import json_body
from lakehouse.server.http import Request, Response, whole_json_response
from lakehouse.server.json_body import Decoder, RegisterBody

BODY_BYTES_MAX = 4 << 20
"""The old contract's limit."""

decode_register = Decoder(RegisterBody)


class CatalogApi:
    """Handlers named as the routes are."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def register(self, request: Request) -> Response:
        """Register a dataset's objects under the fingerprint of their schema."""
        body = await request.body(BODY_BYTES_MAX)
        json_body.check_utf8(body)
        json_body.check_nesting(body, "the body")
        asked: RegisterBody = decode_register(body)
        registration = checked_registration(
            asked.name, asked.schema_fingerprint, tuple(asked.objects or ()), asked.row_count
        )
        done = await self._catalog.register(registration)
        return whole_json_response({"manifest": done.manifest.to_json(), "existing": done.existing})

    async def manifest(self, request: Request) -> Response:
        """The newest manifest of a dataset."""
        return whole_json_response((await self._catalog.manifest(request.params["dataset"])).to_json())

    async def list(self, request: Request) -> Response:
        """The newest manifest of every dataset."""
        manifests = [found.to_json() for found in await self._catalog.list()]
        return whole_json_response({"manifests": manifests, "count": len(manifests)})
