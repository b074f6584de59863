"""`lakehouse` with engine numbers so small that segments, snapshots and garbage happen within a second.

The same program on the same formats: a directory written by one can be opened by the other at any time.
"""

from functools import partial

import lakehouse.server.app
from lakehouse.cli import main
from lakehouse.engine_settings import EngineSettings
from lakehouse.index.settings import IndexSettings

SMALL = partial(
    EngineSettings,
    index=IndexSettings(tail_rows_max=256, settle_rows_min=64, graph_rows_min=32, segments_max=3),
    snapshot_log_entries=20,
    snapshot_idle_bytes=4_096,
    settle_after_s=0.1,
)

if __name__ == "__main__":
    assert hasattr(lakehouse.server.app, "EngineSettings")
    setattr(lakehouse.server.app, "EngineSettings", SMALL)  # noqa: B010  mypy knows it as a class
    main()
