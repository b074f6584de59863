"""Whether a dataset already is what is asked for, found by listing its sources, without reading or converting any.

It is the decision that an ingest itself begins with, on the same ledger, so a process that costs a second to start need
not be started to find nothing to do.  What this module does not do: ingest.
"""

from dataclasses import dataclass

from lakehouse.catalog import Catalog, Chain
from lakehouse.core.manifest import Manifest
from lakehouse.ingest import ledger, sources
from lakehouse.ingest.spec import IngestSpec, checked_spec
from lakehouse.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Look:
    """What an ingest would begin with."""

    found: tuple[sources.Found, ...]
    chain: Chain
    plan: ledger.Plan

    @property
    def current(self) -> Manifest | None:
        """The version that already is what is asked for."""
        return self.chain.newest if self.plan.is_unchanged else None


async def look(spec: IngestSpec, catalog: Catalog, runtime: Runtime, open_bucket: sources.OpenBucket) -> Look:
    """List the sources and compare them with the newest version's ledger.  Raises as `unchanged` does."""
    checked_spec(spec)
    found = await sources.resolve(spec.sources, runtime, open_bucket)
    chain = await catalog.chain(spec.name)
    return Look(found, chain, ledger.plan(chain.newest, spec, found))


async def unchanged(
    spec: IngestSpec, catalog: Catalog, runtime: Runtime, open_bucket: sources.OpenBucket
) -> Manifest | None:
    """The newest version if an ingest of `spec` would leave it as it is; None if there is something to do.

    Raises `NotFound` (a source that is not there), `Invalid` (an address that is none), `Conflict` (what is there
    cannot be joined with what is asked), `Unavailable`: the ingest itself would end in the same.
    """
    return (await look(spec, catalog, runtime, open_bucket)).current
