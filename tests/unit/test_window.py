"""The idempotency window: first answers, conflicts, its bound, and its bytes."""

import pytest

from lakehouse.core.errors import Corrupt
from lakehouse.core.window import IdempotencyWindow, RequestResult


def test_a_repeated_key_gets_the_first_answer_and_another_body_a_conflict() -> None:
    window = IdempotencyWindow()
    window.record(b"k", b"d" * 16, RequestResult(added=2, length=9))
    assert window.find(b"k", b"d" * 16) == RequestResult(added=2, length=9, replayed=True)
    assert window.find(b"k", b"e" * 16) == RequestResult(conflict=True)
    assert window.find(b"other", b"d" * 16) is None


def test_the_oldest_key_is_forgotten_over_the_capacity() -> None:
    window = IdempotencyWindow(capacity=3)
    for key in (b"a", b"b", b"c", b"d"):
        window.record(key, b"d" * 16, RequestResult())
    assert [window.find(key, b"d" * 16) is not None for key in (b"a", b"b", b"c", b"d")] == [
        False,
        True,
        True,
        True,
    ]
    assert len(window) == 3


def test_the_bytes_give_the_same_window_back_in_the_same_order() -> None:
    window = IdempotencyWindow(capacity=2)
    for number, key in enumerate((b"x", b"y" * 255)):
        window.record(key, bytes([number]) * 16, RequestResult(1, 2, 3, 4))
    copy = IdempotencyWindow.from_bytes(window.to_bytes(), capacity=2)
    assert copy.fingerprint() == window.fingerprint()
    copy.record(b"z", b"d" * 16, RequestResult())
    assert copy.find(b"x", bytes(16)) is None


def test_cut_bytes_are_refused() -> None:
    window = IdempotencyWindow()
    window.record(b"key", b"d" * 16, RequestResult())
    data = window.to_bytes()
    for size in range(1, len(data)):
        with pytest.raises(Corrupt):
            IdempotencyWindow.from_bytes(data[:size])
