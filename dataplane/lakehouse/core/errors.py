"""Few kinds of error, each telling the caller what to do.

    LakehouseError
    ├── Invalid            the request is wrong: change it                          (400)
    ├── Denied             the key does not carry the right                         (401, 403)
    ├── NotFound           there is no such thing                                   (404)
    │   └── Dropped        it was, until just now; its name may live again          (404)
    ├── Conflict           something else is there: refresh, then decide            (409)
    ├── TooLarge           over a limit: send less                                  (413)
    ├── Busy               a queue is full: wait, then repeat                       (429)
    ├── Unavailable        may or may not have happened: `outcome` says             (503)
    │   ├── StorageFull    the store has no room                                    (503)
    │   ├── CredentialsRefused  the store does not accept ours                      (503)
    │   ├── BucketNotFound  there is no such bucket                                 (503)
    │   ├── Fenced         another writer took the log over: open it again          (503)
    │   └── OtherLife      another process serves another life: look at the records (503)
    └── Corrupt            stored bytes are not what was written: never served      (500)

Raised where the fact is known, translated once at each boundary, always `from` the cause.
Anything else that escapes is a bug.  This module does not know HTTP; the numbers are for orientation.
"""

import enum


class Outcome(enum.StrEnum):
    """What is known of a write that was not acknowledged."""

    NOT_COMMITTED = "not_committed"
    """It did not happen and never will."""
    UNKNOWN = "unknown"
    """It happened wholly or not at all; repeat it with the same idempotency key to find out."""


class LakehouseError(Exception):
    """The root of every error raised on purpose."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Invalid(LakehouseError):
    """The request is wrong; repeating it unchanged cannot succeed."""


class Denied(LakehouseError):
    """The caller lacks the right."""

    def __init__(self, message: str, *, authenticated: bool) -> None:
        super().__init__(message)
        self.authenticated = authenticated


class NotFound(LakehouseError):
    """No such thing."""


class Dropped(NotFound):
    """The index was dropped while the request was on its way; look its name up again."""


class Conflict(LakehouseError):
    """Something else is already there."""


class TooLarge(LakehouseError):
    """Over a size limit."""


class Busy(LakehouseError):
    """A bounded queue is full; nothing was done."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(LakehouseError):
    """The store, or something behind it, did not answer as it should."""

    def __init__(
        self, message: str, *, outcome: Outcome = Outcome.UNKNOWN, retry_after_s: float = 1.0
    ) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.retry_after_s = retry_after_s


class StorageFull(Unavailable):
    """The store has no room; nothing was written."""


class CredentialsRefused(Unavailable):
    """The store does not accept our credentials, or not for this act; nothing was done."""


class BucketNotFound(Unavailable):
    """There is no such bucket; nothing was done."""


class MemoryExceeded(Unavailable):
    """The work needs more memory than a setting allows; nothing was published."""


class WorkerDied(Unavailable):
    """The process that did the work ended in the middle of it; nothing was published."""


class Fenced(Unavailable):
    """Another writer owns the log now."""


class OtherLife(Unavailable):
    """Who was asked serves another life of the index; nothing was done."""


class Corrupt(LakehouseError):
    """Bytes differ from what their checksum or structure says; they are never served."""
