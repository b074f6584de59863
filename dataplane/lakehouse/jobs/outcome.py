"""What came of a task, for whoever started the process: one JSON object where Kubernetes looks for it.

What this module does not do: decide what came of it.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lakehouse.core.errors import LakehouseError

logger = logging.getLogger(__name__)

DEFAULT_PATH = Path("/dev/termination-log")
PATH_VARIABLE = "LAKEHOUSE_TERMINATION_LOG"
MESSAGE_CHARACTERS_MAX = 2_000
"""Kubernetes keeps 4,096 bytes of a termination message; a character of JSON may take two."""
STOPPED = "Stopped"
INTERNAL = "InternalError"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a task."""

    ok: bool
    result: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    """The error's class, `Stopped` when the process was asked to end, `InternalError` for a bug."""
    message: str = ""

    @property
    def is_a_bug(self) -> bool:
        return self.reason == INTERNAL

    def to_json(self) -> dict[str, Any]:
        if self.ok:
            return {"ok": True, "result": dict(self.result)}
        return {"ok": False, "reason": self.reason, "message": self.message[:MESSAGE_CHARACTERS_MAX]}


def failed(error: BaseException) -> Outcome:
    """The outcome of a task that ended in `error`."""
    if isinstance(error, LakehouseError):
        return Outcome(False, reason=type(error).__name__, message=error.message)
    return Outcome(
        False, reason=INTERNAL, message=f"an internal error; the log has it. error=`{type(error).__name__}`"
    )


def path_from(environment: Mapping[str, str]) -> Path | None:
    """Where the outcome goes: as the environment says, else where Kubernetes looks, if that is there."""
    named = environment.get(PATH_VARIABLE)
    if named:
        return Path(named)
    return DEFAULT_PATH if DEFAULT_PATH.exists() else None


def write(outcome: Outcome, path: Path | None) -> None:
    """Write it, if there is anywhere to; a failure to do so is only logged, for the exit status says it too."""
    text = json.dumps(outcome.to_json(), ensure_ascii=False, separators=(",", ":"))
    logger.info("done outcome=%s", text)
    if path is None:
        return
    try:
        with path.open("wb") as file:
            file.write(text.encode("utf-8", "backslashreplace"))
            file.flush()
    except OSError as error:
        logger.error("the outcome cannot be written. path=%s error=%s", path, error)
