"""A peer key's file changes at another time for each process; nobody who knows the one or the other is refused."""

import logging
from pathlib import Path

import pytest

from lakehouse.core.errors import Invalid, Outcome, Unavailable
from lakehouse.remote import peer_key
from lakehouse.remote.calls import refusal
from lakehouse.remote.peer_key import PREVIOUS_S, PeerKey
from lakehouse.runtime import SystemRuntime
from lakehouse.server.auth import Guard, KeyRefused
from lakehouse.settings import ApiKey, Right

FIRST, SECOND, THIRD = "the-first-peer-key", "the-second-peer-key", "the-third-peer-key"


class Clock(SystemRuntime):
    """Stands still until it is moved; who sleeps moves it."""

    now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        if self.now_s > 10:
            raise TimeoutError("the test ends here")


@pytest.fixture
def clock() -> Clock:
    return Clock(1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "peer-key"
    write(made, FIRST)
    return made


def write(file: Path, text: str) -> None:
    """As a kubelet does: by one rename."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


def taken(key: PeerKey) -> list[str]:
    return [one for one in (FIRST, SECOND, THIRD) if key.takes(one.encode())]


def test_a_key_for_good_stays(clock: Clock) -> None:
    key = PeerKey(clock, FIRST)
    key.look()
    assert (bool(key), key.shown(), taken(key)) == (True, (FIRST,), [FIRST])


def test_without_a_key_nothing_is_shown_and_nothing_taken(clock: Clock) -> None:
    key = PeerKey(clock)
    assert (bool(key), key.shown(), taken(key), key.takes(b"")) == (False, ("",), [], False)


def test_after_a_change_the_key_before_counts_for_a_bounded_time(clock: Clock, file: Path) -> None:
    key = PeerKey(clock, file=file)
    write(file, SECOND + "\n")
    key.look()
    assert (key.shown(), taken(key)) == ((SECOND, FIRST), [FIRST, SECOND])
    clock.now_s = PREVIOUS_S - 0.1
    assert (key.shown(), taken(key)) == ((SECOND, FIRST), [FIRST, SECOND])
    clock.now_s = PREVIOUS_S
    assert (key.shown(), taken(key)) == ((SECOND,), [SECOND])


def test_only_the_one_before_counts_of_many(clock: Clock, file: Path) -> None:
    key = PeerKey(clock, file=file)
    for text in (SECOND, THIRD):
        write(file, text)
        key.look()
    assert (key.shown(), taken(key)) == ((THIRD, SECOND), [SECOND, THIRD])


def test_a_key_that_is_not_known_is_looked_for_before_it_is_refused(clock: Clock, file: Path) -> None:
    key = PeerKey(clock, file=file)
    write(file, SECOND)
    assert key.shown() == (FIRST,)
    assert key.takes(SECOND.encode())
    assert key.shown() == (SECOND, FIRST)


def test_the_same_key_in_a_new_file_changes_nothing(clock: Clock, file: Path) -> None:
    key = PeerKey(clock, file=file)
    write(file, FIRST + "\n")
    key.look()
    assert (key.shown(), taken(key)) == ((FIRST,), [FIRST])


async def test_a_change_is_seen_although_nobody_asks(clock: Clock, file: Path) -> None:
    key = PeerKey(clock, file=file)
    write(file, SECOND)
    with pytest.raises(TimeoutError):
        await key.watch()
    clock.now_s = PREVIOUS_S
    assert key.shown() == (SECOND,)


async def test_without_a_file_there_is_nothing_to_watch(clock: Clock) -> None:
    await PeerKey(clock, FIRST).watch()


@pytest.mark.parametrize("content", [None, b"", b" \n", b"short", b"\xff" * 20, b"one line and\nanother"])
def test_a_start_without_a_key_in_the_file_names_it(
    clock: Clock, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "peer-key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(Invalid, match=f"peer_key_file=`{file}`"):
        PeerKey(clock, file=file)


@pytest.mark.parametrize("content", [None, b"", b"short"])
def test_a_file_that_loses_its_key_leaves_the_last_one_and_is_told_of_once(
    clock: Clock, file: Path, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    key = PeerKey(clock, file=file)
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with caplog.at_level(logging.INFO, peer_key.__name__):
        for _ in range(3):
            key.look()
            assert (key.shown(), taken(key)) == ((FIRST,), [FIRST])
        [told] = caplog.messages
        assert str(file) in told
        write(file, SECOND)
        key.look()
    assert key.shown() == (SECOND, FIRST)
    assert "changed" in caplog.messages[-1]
    assert not any(secret in line for line in caplog.messages for secret in (FIRST, SECOND))


def test_a_file_that_is_being_written_is_read_when_that_has_ended(
    clock: Clock, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = PeerKey(clock, file=file)
    write(file, SECOND[:-1])
    read = peer_key._read

    def meanwhile(path: Path) -> str:
        found = read(path)
        write(path, SECOND)
        return found

    monkeypatch.setattr(peer_key, "_read", meanwhile)
    key.look()
    assert key.shown() == (FIRST,)
    monkeypatch.undo()
    key.look()
    assert key.shown() == (SECOND, FIRST)


def test_a_guard_takes_what_the_file_says(clock: Clock, file: Path) -> None:
    guard = Guard([ApiKey(name="k", right=Right.READ, sha256="0" * 64)], PeerKey(clock, file=file))
    write(file, SECOND)
    for shown in (FIRST, SECOND):
        assert guard.check(b"Bearer " + shown.encode(), Right.ADMIN, internal=True).name == "peer"
    with pytest.raises(KeyRefused):
        guard.check(b"Bearer " + THIRD.encode(), Right.ADMIN, internal=True)
    clock.now_s = PREVIOUS_S
    with pytest.raises(KeyRefused):
        guard.check(b"Bearer " + FIRST.encode(), Right.READ)


def test_a_peer_that_refuses_our_keys_is_unavailable_and_nothing_happened() -> None:
    error = refusal(401, b'{"title": "Unauthorized"}')
    assert isinstance(error, Unavailable)
    assert error.outcome is Outcome.NOT_COMMITTED
    assert "LAKEHOUSE_PEER_KEY_FILE" in error.message
