"""Log lines on standard error, as JSON objects or as text.

The messages are the same either way: a sentence, then names and values.  What this module does not do: log.
"""

import logging
import traceback
from datetime import UTC, datetime

import orjson

from lakehouse_operator.settings import LogFormat

QUIET = {"kopf.objects": logging.WARNING, "httpx": logging.WARNING, "httpcore": logging.WARNING}
"""What they say at INFO is one line per event or request."""


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message and, of an exception, its trace."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = "".join(traceback.format_exception(*record.exc_info))
        return orjson.dumps(line).decode()


def set_up(form: LogFormat, level: str) -> None:
    """Send what is at least of `level` to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter()
        if form is LogFormat.JSON
        else logging.Formatter("%(asctime)s %(levelname)-7s %(name)s %(message)s")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name, least in QUIET.items():
        logging.getLogger(name).setLevel(max(least, root.level))
