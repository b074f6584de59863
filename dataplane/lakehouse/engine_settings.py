"""The engine's numbers: deadlines, limits, and when to snapshot.  Values only; stores and clocks are passed beside."""

from dataclasses import dataclass, field
from pathlib import Path

from lakehouse.index.settings import IndexSettings

MIB = 1 << 20


@dataclass(frozen=True)
class EngineSettings:
    """How one process runs its indexes."""

    index: IndexSettings = field(default_factory=IndexSettings)
    """How vectors are kept in memory."""
    scratch: Path | None = None
    """Directory for mapped working files, unlinked as soon as they are open; None keeps everything in memory."""
    write_deadline_s: float = 10.0
    """Seconds a write waits for its commit before it is answered 503; one S3 read timeout."""
    read_deadline_s: float = 5.0
    """Seconds a strong read waits for the store before it is answered from what is known, with its staleness."""
    queue_bytes_max: int = 64 * MIB
    """Bytes of writes waiting per shard before more are answered 429; as much as one request may carry."""
    queue_requests_max: int = 1_024
    """Writes waiting per shard before more are answered 429."""
    group_bytes_max: int = 16 * MIB
    """Bytes after which a group commit stops growing; one PUT of this size takes well under a second."""
    batch_bytes_max: int = 128 * MIB
    """Bytes one batch may have in the log; a 64 MiB body of JSON cannot exceed it."""
    snapshot_log_bytes: int = 256 * MIB
    """Bytes of log past the newest snapshot that make one; bounds what a restart replays."""
    snapshot_log_entries: int = 10_000
    """Entries past the newest snapshot that make one."""
    snapshot_idle_bytes: int = 8 * MIB
    """Bytes of log worth a snapshot once an index has settled, if also a quarter of its size; makes restarts fast."""
    log_bytes_max: int = 2 << 30
    """Bytes of log past the newest snapshot before writes are answered 429; snapshots are failing then."""
    settle_after_s: float = 2.0
    """Seconds without a write after which an index is settled towards one segment."""
    breaker_failures: int = 3
    """Failed store calls in a row after which writes are refused at once."""
    probe_interval_s: float = 1.0
    """Seconds between attempts while the breaker is open."""
    tail_poll_s: float = 1.0
    """Seconds an eventual read may lag on a shared store before it starts a catch-up in the background."""
    build_threads: int = 1
    """Threads that build graphs, at low priority; more builds faster and takes it from searches."""
