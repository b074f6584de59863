"""helm is there before the first test asks for it."""

from chart.rendering import pytest_collection_finish

__all__ = ["pytest_collection_finish"]
