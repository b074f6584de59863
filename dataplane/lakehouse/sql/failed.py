"""What ends a query inside its worker.  What this module does not do: tell anybody; the worker sends it."""


class FailedError(Exception):
    """The query ends here; `kind` is for programs, the message for people."""

    def __init__(self, kind: str, message: str, offset: int | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.offset = offset
