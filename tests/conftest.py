"""What every test shares: the soak switch, a real MinIO and a real API server.

Long runs are skipped, and say so, unless `--soak` is given; nothing is deselected silently.
"""

import pytest

pytest_plugins = ["kube_api_server", "minio_server"]


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
    skip = pytest.mark.skip(reason="long run: `make soak`")
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(skip)
