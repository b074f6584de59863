"""Vector search and Parquet datasets whose only durable state is a bucket.

    import lakehouse

    with lakehouse.connect("./lakehouse-data") as lake:  # or s3://…, memory:, http://…
        lake.ingest("products.csv", "products")
        lake.sql("SELECT * FROM products LIMIT 5").to_pandas()

What is named here is imported when it is first used, so that importing the package costs next to nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lakehouse.client import AsyncClient, Client
    from lakehouse.connection import connect, connect_async

    __version__: str

__all__ = ["AsyncClient", "Client", "__version__", "connect", "connect_async"]

_HOMES = {
    "AsyncClient": "lakehouse.client",
    "Client": "lakehouse.client",
    "connect": "lakehouse.connection",
    "connect_async": "lakehouse.connection",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _HOMES:
        import importlib

        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lakehouse")
    except PackageNotFoundError:  # running from a source tree that was never installed
        return "0+source"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
