"""A retry repeats the very same bytes, and only where doing it twice is doing it once.

What it does not do: wait; the clients do.
"""

from dataclasses import dataclass

from lakehouse.client.wire import Request
from lakehouse.core import errors

ATTEMPTS_MAX = 6
"""With the waits below about ten seconds: a restart or a fail-over fits into it."""
BACKOFF_FIRST_S = 0.25
BACKOFF_MAX_S = 10.0


@dataclass(frozen=True, slots=True)
class Retries:
    """When a failed call is repeated, and after how long: pure."""

    attempts_max: int = ATTEMPTS_MAX
    first_s: float = BACKOFF_FIRST_S
    """The wait after the first failure; each later one doubles it, up to `BACKOFF_MAX_S`."""

    def delay(
        self, request: Request, error: errors.LakehouseError, attempt: int, chance: float
    ) -> float | None:
        """Seconds to wait before repeating after failed attempt number `attempt` (from 1); None: give up.

        `chance` in [0, 1) spreads the wait between half and all of its length, so that clients that failed
        together come back apart.
        """
        if attempt >= self.attempts_max or not isinstance(error, errors.Busy | errors.Unavailable):
            return None
        happened = isinstance(error, errors.Unavailable) and error.outcome is errors.Outcome.UNKNOWN
        if happened and not request.repeatable:
            return None
        wait = min(BACKOFF_MAX_S, self.first_s * 2.0 ** (attempt - 1))
        return max(wait * (0.5 + chance / 2), min(error.retry_after_s, BACKOFF_MAX_S))


RETRIES = Retries()
