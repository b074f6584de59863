"""What a declared index refuses, and the gate that keeps late writes out of a rebuild."""

import asyncio

import pytest

from lakehouse.core.errors import Conflict, Outcome, Unavailable
from lakehouse.server import declared
from lakehouse.server.declared import Declared, WriteGate

FOLLOWS = Declared("VectorIndex/main", "it follows dataset d")
PLAIN = Declared("VectorIndex/main")


async def test_the_gate_waits_for_writes_that_began_and_refuses_those_that_come() -> None:
    gate, steps = WriteGate(), []
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def write() -> None:
        with gate.writing("main", "other"):
            begun.set()
            await may_end.wait()
            steps.append("written")

    async def rebuild() -> None:
        async with gate.shut("main"):
            steps.append("copied")

    tasks = [asyncio.ensure_future(write())]
    await begun.wait()
    tasks.append(asyncio.ensure_future(rebuild()))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable) as refused, gate.writing("main"):
        raise AssertionError
    assert refused.value.outcome is Outcome.NOT_COMMITTED
    with gate.writing("another"):
        may_end.set()
        await asyncio.gather(*tasks)
    assert steps == ["written", "copied"]
    with gate.writing("main"):
        pass


async def test_a_rebuild_that_fails_opens_the_gate() -> None:
    gate = WriteGate()
    with pytest.raises(ZeroDivisionError):
        async with gate.shut("main"):
            raise ZeroDivisionError
    with gate.writing("main"):
        pass


def test_a_declared_index_is_created_and_dropped_by_its_resource_only() -> None:
    declared.check_not_declared(None, "main")
    with pytest.raises(Conflict, match="VectorIndex/main"):
        declared.check_not_declared(PLAIN, "main")


def test_only_an_index_that_follows_a_dataset_takes_no_writes() -> None:
    declared.check_writable(None, "main")
    declared.check_writable(PLAIN, "main")
    with pytest.raises(Conflict, match="follows dataset d"):
        declared.check_writable(FOLLOWS, "main")


def test_a_suspended_index_is_unavailable_and_nothing_was_done() -> None:
    declared.check_served(PLAIN, "main")
    with pytest.raises(Unavailable) as refused:
        declared.check_served(Declared("VectorIndex/main", suspended=True), "main")
    assert refused.value.outcome is Outcome.NOT_COMMITTED
