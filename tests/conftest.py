"""What every test shares: the soak switch, a real MinIO, a real API server and a namespace there.

Long runs are skipped, and say so, unless `--soak` is given; nothing is deselected silently.
"""

from collections.abc import Iterator

import pytest

from lakehouse.runtime import SystemRuntime

pytest_plugins = ["kube_api_server", "minio_server", "operator_frame.running"]


@pytest.fixture
def runtime() -> Iterator[SystemRuntime]:
    """The process's own clock, chance and threads."""
    found = SystemRuntime()
    yield found
    found.close()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="also run the tests marked `soak`")


OPERATOR_TESTS = ("operator_domain", "operator_frame")
"""An HTTP request that is cancelled while it connects, as an operator that stops does, leaves its socket to the
collector: the client library's connect gives nobody a handle to it.  They are collected where an operator ends."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name in OPERATOR_TESTS:
            item.add_marker(pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"))
    if config.getoption("--soak"):
        return
    for item in items:
        if item.get_closest_marker("soak"):
            target = "e2e-soak" if item.path.parent.name == "e2e" else "soak"
            item.add_marker(pytest.mark.skip(reason=f"long run: `make {target}`"))
