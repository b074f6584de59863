"""What a client may see: for each id, the values that its acknowledged and unanswered writes allow.

Each id has one client, which writes it one request at a time, so the rule is short.  After an acknowledged write the
id has that value, or the value of a later write that was not answered.  A strong read that shows one of those settles
it.  A write answered `not_committed` is never seen.
"""

from dataclasses import dataclass, field

ABSENT = -1
"""The value of an id that is not there."""


class Lost(AssertionError):
    """An acknowledged write is not there, or something is there that cannot be."""


@dataclass
class History:
    """One id's writes, in the order they were sent."""

    id: str
    settled: int = ABSENT
    """Of the last write known to have happened."""
    open: list[int] = field(default_factory=list)
    """Of later writes whose outcome is unknown."""
    sent: list[int] = field(default_factory=list)
    """Of every write, in order."""

    def sending(self, value: int) -> None:
        """A write is about to leave."""
        self.sent.append(value)

    def since(self) -> "Since":
        """What a read that begins now may see: what may be true now, and whatever is sent before it ends."""
        return Since(
            self, {self.settled, *self.open, *self.sent[-1:]}, len(self.sent)
        )  # the last may be under way

    def acknowledged(self, value: int) -> None:
        self.settled, self.open = value, []

    def unanswered(self, value: int) -> None:
        self.open.append(value)

    def allows(self, value: int) -> bool:
        return value == self.settled or value in self.open

    def saw(self, value: int, where: str) -> None:
        """A strong read showed `value`.  Raises `Lost`."""
        if not self.allows(value):
            raise Lost(f"{where}: {self.id} is {value}, but only {[self.settled, *self.open]} may be")
        if (
            value in self.open
        ):  # writes sent before the one we saw can no longer happen: their slots are taken
            self.settled = value
            self.open = self.open[self.open.index(value) + 1 :]


@dataclass(frozen=True)
class Since:
    """One id's possible values from some moment on."""

    history: History
    then: set[int]
    sent_before: int

    def check(self, value: int, where: str) -> None:
        """A read that began then showed `value`.  Raises `Lost`."""
        if value not in self.then and value not in self.history.sent[self.sent_before :]:
            raise Lost(f"{where}: {self.history.id} is {value}, but could only be {self.then} or later")
