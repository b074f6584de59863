"""What one server tells of itself over HTTP: health, metrics, indexes, datasets, declared resources.

What this module does not do: read items, rows, or the text of queries.
"""

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import httpx

from lakehouse.cli.support.bundle import Bundle
from lakehouse.core.errors import Denied, Outcome, Unavailable

ANSWER_S_MAX = 30.0
INDEXES_MAX = 200
"""Indexes whose statistics are asked for."""
RESOURCES_MAX = 200
"""Resources whose events are asked for."""
OPEN = ("health", "livez", "readyz")


class Server:
    """Collects from one address."""

    def __init__(self, url: str, api_key: str | None) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._url = url.rstrip("/")
        self._client = httpx.Client(base_url=self._url, headers=headers, timeout=ANSWER_S_MAX)

    def close(self) -> None:
        self._client.close()

    def check(self) -> None:
        """Raises `Unavailable` when nobody answers there."""
        self._asked("/health")

    def collect(self, bundle: Bundle) -> None:
        """Everything; each part that cannot be had is noted."""
        for name in OPEN:
            bundle.collect(f"/{name}", self._json(bundle, f"/{name}", f"server/{name}.json"))
        bundle.collect("metrics", lambda: bundle.text("server/metrics.txt", self._asked("/metrics").text))
        bundle.collect("indexes", lambda: self._indexes(bundle))
        bundle.collect(
            "datasets", self._json(bundle, "/v1/catalog/list", "server/datasets.json", _without_ledger)
        )
        bundle.collect("running ingests", self._json(bundle, "/v1/ingest", "server/ingests.json"))
        bundle.collect("declared resources", lambda: self._resources(bundle))

    def _json(
        self, bundle: Bundle, path: str, name: str, kept: Callable[[Any], Any] = lambda value: value
    ) -> Callable[[], None]:
        return lambda: bundle.json(name, kept(self._asked(path).json()))

    def _indexes(self, bundle: Bundle) -> None:
        names = self._asked("/v1/vectors/index").json()["names"]
        bundle.json("server/indexes.json", names)
        for name in names[:INDEXES_MAX]:
            path = f"/v1/vectors/index/{quote(name, safe='')}/stats"
            bundle.collect(f"index {name}", self._json(bundle, path, f"server/indexes/{name}.json"))

    def _resources(self, bundle: Bundle) -> None:
        found = self._asked("/resources").json()
        bundle.json("server/resources.json", found)
        for resource in found.get("items", [])[:RESOURCES_MAX]:
            kind, name = resource["kind"], resource["metadata"]["name"]
            path = f"/resources/{quote(kind, safe='')}/{quote(name, safe='')}/events"
            bundle.collect(
                f"events of {kind}/{name}", self._json(bundle, path, f"server/events/{kind}-{name}.json")
            )

    def _asked(self, path: str) -> httpx.Response:
        """Raises `Unavailable`, `Denied`."""
        try:
            answer = self._client.get(path)
        except httpx.HTTPError as error:
            raise Unavailable(
                f"no server answers there: {error}. url=`{self._url}`", outcome=Outcome.NOT_COMMITTED
            ) from error
        if answer.status_code in (401, 403):
            raise Denied(f"the key does not allow it. path=`{path}`", authenticated=answer.status_code == 403)
        if answer.status_code not in (200, 503):  # a server that is not ready says why
            raise Unavailable(
                f"the server answered {answer.status_code}. path=`{path}`", outcome=Outcome.NOT_COMMITTED
            )
        return answer


def _without_ledger(listed: Mapping[str, Any]) -> Mapping[str, Any]:
    """Manifests without the lists of files and the statistics, which hold values of rows."""
    left_out = ("sources", "objects", "stats")
    manifests = [
        {name: value for name, value in manifest.items() if name not in left_out}
        for manifest in listed.get("manifests", [])
    ]
    return {**listed, "manifests": manifests}
