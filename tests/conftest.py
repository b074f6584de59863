"""What every test shares: the soak switch, a real MinIO and a real API server.

Long runs are skipped, and say so, unless `--soak` is given; nothing is deselected silently.
"""

import pytest

pytest_plugins = ["kube_api_server", "minio_server"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="also run the tests marked `soak`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--soak"):
        return
    skip = pytest.mark.skip(reason="long run: `make soak`")
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(skip)
