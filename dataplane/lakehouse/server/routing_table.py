"""What is declared, and where each index of it is served: the table that an operator writes and a gateway follows.

`{"version": 1, "namespace": "shop", "indexes": {"products": {"url": "http://products.shop.svc:3110", "resource":
"VectorIndex/shop/products", "ready": true, "suspended": false, "read_only": true, "follows": "catalog", "shard_url":
"http://products-shard-{shard}.shop.svc:3110"}}, "datasets": ["catalog"]}`: an index that is named here is served at its
own address or not at all, whatever else knows its name; a dataset is changed by its resource only.  Fields that this
release does not know are passed over, and those that an older one did not write are empty.  What this module does not
do: read the table from anywhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec

from lakehouse.control.kinds import DATASET
from lakehouse.core.errors import Invalid
from lakehouse.core.names import checked_index_name

VERSION = 1
KEY = "routes.json"
"""Of the ConfigMap's data."""
TABLE_BYTES_MAX = 2 << 20
"""Above what a ConfigMap holds, 1 MiB."""


class Place(msgspec.Struct, frozen=True):
    """Where one index is."""

    url: str
    """Of any of its pods; each answers for the whole index."""
    resource: str
    """What declares it, as `VectorIndex/<namespace>/<name>`."""
    ready: bool
    suspended: bool = False
    """Its resource wants it to be not served."""
    read_only: bool = False
    """Only its dataset may change it."""
    follows: str = ""
    """That dataset."""
    shard_url: str = ""
    """Where the pods of one shard are, `{shard}` for its number, several hosts after commas; empty: at `url`."""


@dataclass(frozen=True, slots=True)
class Table:
    """One state of the table."""

    indexes: Mapping[str, Place]
    datasets: frozenset[str] = frozenset()
    namespace: str = ""
    """Of all resources in it."""

    @property
    def ready_names(self) -> frozenset[str]:
        """The declared indexes that answer now."""
        return frozenset(name for name, place in self.indexes.items() if place.ready)

    def declares_dataset(self, dataset: str) -> str | None:
        """The resource that declares a dataset, as `Dataset/<namespace>/<name>`; None for any other."""
        return f"{DATASET}/{self.namespace}/{dataset}" if dataset in self.datasets else None


class _Table(msgspec.Struct):
    version: int
    indexes: dict[str, Place]
    datasets: frozenset[str] = frozenset()
    namespace: str = ""


_decode = msgspec.json.Decoder(_Table).decode


def parse(data: bytes | str) -> Table:
    """The table in this JSON.  Raises `Invalid` naming what is wrong in it."""
    if len(data) > TABLE_BYTES_MAX:
        raise Invalid(f"the routing table is too large. bytes=`{len(data)}` most=`{TABLE_BYTES_MAX}`")
    try:
        found = _decode(data)
    except msgspec.DecodeError as error:
        raise Invalid(f"the routing table cannot be read: {str(error).lower()}") from error
    if found.version != VERSION:
        raise Invalid(
            f"the routing table is of another version: run the gateway and the operator of one release. "
            f"version=`{found.version}` known=`{VERSION}`"
        )
    for name, place in found.indexes.items():
        _check(name, place)
    return Table(found.indexes, found.datasets, found.namespace)


def _check(name: str, place: Place) -> None:
    checked_index_name(name)
    for url in (place.url, *_each_host(place.shard_url)):
        if url and not _is_address(url):
            raise Invalid(
                f"an address in the routing table needs a scheme and a host. index=`{name}` url=`{url}`"
            )
    if not place.url or not place.resource:
        raise Invalid(f"an index in the routing table needs `url` and `resource`. index=`{name}`")


def _each_host(url: str) -> list[str]:
    scheme, _, hosts = url.replace("{shard}", "0").partition("://")
    return [f"{scheme}://{host}" for host in hosts.split(",")] if url else []


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)
