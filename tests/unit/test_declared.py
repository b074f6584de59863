"""What a declared index refuses."""

import pytest

from lakehouse.core.errors import Conflict, Outcome, Unavailable
from lakehouse.server import declared
from lakehouse.server.declared import Declared

FOLLOWS = Declared("VectorIndex/main", "it follows dataset d")
PLAIN = Declared("VectorIndex/main")


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
