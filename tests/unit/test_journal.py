"""The kill tests are only as good as their judge: it accepts what is allowed and nothing else."""

import pytest

from journal import Delete, Journal, Upsert, Value, Verdict

A, B = b"\x00\x00\x80\x3f", b"\x00\x00\x00\x40"


def put(*ids: str, vector: bytes = A, metadata: str | None = "1") -> Upsert:
    return Upsert(tuple((item_id, vector, metadata) for item_id in ids))


def journal(*writes: tuple[Upsert | Delete, Verdict]) -> Journal:
    made = Journal()
    for write, verdict in writes:
        made.record(write, verdict)
    return made


def test_an_acknowledged_write_that_is_missing_is_noticed() -> None:
    with pytest.raises(AssertionError, match="x is missing"):
        journal((put("x"), Verdict.COMMITTED)).settle({})


def test_a_refused_write_that_is_there_is_noticed() -> None:
    with pytest.raises(AssertionError, match="x should not be there"):
        journal((put("x"), Verdict.REFUSED)).settle({"x": Value(A, "1")})


def test_one_other_bit_in_a_vector_is_noticed() -> None:
    with pytest.raises(AssertionError, match="x has other vector"):
        journal((put("x"), Verdict.COMMITTED)).settle({"x": Value(b"\x01" + A[1:], "1")})


def test_other_metadata_is_noticed() -> None:
    with pytest.raises(AssertionError, match="x has other metadata"):
        journal((put("x"), Verdict.COMMITTED)).settle({"x": Value(A, "2")})


def test_half_of_an_unknown_batch_is_noticed() -> None:
    with pytest.raises(AssertionError, match="no combination of 1 unknown"):
        journal((put("x", "y"), Verdict.UNKNOWN)).settle({"x": Value(A, "1")})


def test_an_unknown_batch_may_be_there_or_not() -> None:
    whole = {"x": Value(A, "1"), "y": Value(A, "1")}
    assert journal((put("x", "y"), Verdict.UNKNOWN)).settle(whole) == (1, 0)
    assert journal((put("x", "y"), Verdict.UNKNOWN)).settle({}) == (0, 1)


def test_a_later_acknowledged_write_wins_over_an_unknown_one() -> None:
    writes = (put("x"), Verdict.UNKNOWN), (put("x", vector=B, metadata="2"), Verdict.COMMITTED)
    journal(*writes).settle({"x": Value(B, "2")})
    with pytest.raises(AssertionError, match="x has other vector"):
        journal(*writes).settle({"x": Value(A, "1")})


def test_an_upsert_without_metadata_keeps_what_an_unknown_one_may_have_stored() -> None:
    writes = (put("x", metadata="2"), Verdict.UNKNOWN), (put("x", vector=B, metadata=None), Verdict.COMMITTED)
    journal(*writes).settle({"x": Value(B, "2")})
    journal(*writes).settle({"x": Value(B, "")})


def test_a_deleted_item_that_comes_back_is_noticed() -> None:
    with pytest.raises(AssertionError, match="x should not be there"):
        journal((put("x"), Verdict.COMMITTED), (Delete(("x",)), Verdict.COMMITTED)).settle(
            {"x": Value(A, "1")}
        )


def test_what_was_seen_once_stays_settled() -> None:
    seen = journal((put("x"), Verdict.UNKNOWN))
    seen.settle({"x": Value(A, "1")})
    with pytest.raises(AssertionError, match="x is missing"):
        seen.settle({})
