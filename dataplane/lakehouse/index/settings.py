"""What an operator may turn in an index, and why each number is what it is."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """How an index trades building against searching; the defaults suit 10,000 to 10,000,000 rows."""

    tail_rows_max: int = 8_192
    """Rows searched exactly before they are frozen into a graph segment.  An exact scan of 8,192 × 384 floats
    takes about 0.3 ms; smaller segments would cost every search more than they save."""

    settle_rows_min: int = 1_024
    """Rows in the tail of an idle index worth a graph: a graph search computes about 1,000 distances itself, so
    fewer rows are as fast to scan."""

    dead_ratio_max: float = 0.2
    """Share of dead rows at which a graph segment is rebuilt.  Dead rows are crossed by every search but never
    returned; at a fifth they cost a quarter more."""

    settle_ratio: float = 0.1
    """Rows outside the largest segment, as a share of it, at which an idle index is merged into one.  Below it a
    rebuild would cost more than ten times the rows it serves."""

    segments_max: int = 6
    """Graph segments before size tiers are merged, idle or not; each costs every search one more graph walk."""

    probe_ef: int = 32
    """Candidates kept when each row of a new segment is searched for.  Half the default `ef_search`: a row found
    with 32 is found with 64.  The rows missed are scanned exactly by every search."""

    probe_rows_max: int = 2_000_000
    """Rows probed per segment; above it those with the fewest incoming links are.  2,000,000 probes take about a
    minute and a half of one core."""

    code_loss_max: float = 0.003
    """Share of the 10 nearest that walking a graph by 8-bit codes may lose; a segment whose vectors lose more is
    walked by its originals, at about twice the time.  Embeddings lose about 0.001."""

    graph_rows_min: int = 256
    """Rows below which a segment gets no graph: a scan of them is cheaper than any walk."""

    walk_cost: float = 1.8
    """Time of a distance met on a graph walk over that of one in a scan, which the memory prefetcher serves."""

    coded_walk_cost: float = 1.2
    """The same for a walk by 8-bit codes, which fetches a quarter of the bytes."""

    oversampling: float = 1.5
    """Candidates kept by a walk by codes, over `ef`; all are measured with the originals.  It makes up for the
    rounding with room to spare, and costs less than the codes save."""

    predicates_max: int = 64
    """Row masks of predicates kept per segment; 64 masks of 1,000,000 rows are 8 MB."""

    columns_max: int = 32
    """Metadata columns kept per segment for filters; the least recently used goes first."""
