"""How SQL reaches an index: one call for many queries.

The service depends on this protocol, not on the engine.  What this module does not do: search; see
`lakehouse.vector_sql`.
"""

from collections.abc import Sequence
from typing import Protocol

from lakehouse.core.types import Hit, Vectors


class VectorSearch(Protocol):
    """What `vector_search` in SQL asks."""

    async def search(
        self, index: str, queries: Vectors | Sequence[str], k: int, filter: str | None
    ) -> Sequence[Sequence[Hit]]:
        """The k nearest items of each query, nearest first; `filter` is a predicate over metadata.

        Queries are float32 (q, dimension), or ids of stored items, which are left out of their own answer.
        Raises `NotFound` for an unknown index or item, `Invalid` for a wrong dimension, k or filter.
        """
        ...
