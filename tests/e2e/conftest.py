"""One cluster, one MinIO and one installed chart for the session, and what holds after every test.

Tests that ask for them are skipped, saying so, unless `make e2e` (or tests/e2e/run.py) started a cluster.
"""

import os
from collections.abc import Iterator

import pytest

from e2e import engines, evidence, images, release, store
from e2e.access import Cluster
from e2e.evidence import OperatorWatch
from e2e.images import Image
from e2e.release import Release
from e2e.store import Store
from e2e.truth import Truth

NAMESPACE = "lakehouse-e2e"
FAILED = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster that tests/e2e/run.py brought up."""
    name = os.environ.get("LAKEHOUSE_E2E_ENGINE", "")
    if not name:
        pytest.skip("needs a Kubernetes cluster: `make e2e`")
    with Cluster(engines.of(name)) as found:
        yield found


@pytest.fixture(scope="session")
def images_loaded(cluster: Cluster) -> dict[str, Image]:
    """`dataplane`, `operator` and `minio`, on every node."""
    found = images.of(cluster.engine)
    return {name: images.loaded(cluster.engine, image) for name, image in found.items()}


@pytest.fixture(scope="session")
def minio_pod(cluster: Cluster, images_loaded: dict[str, Image]) -> Iterator[Store]:
    """MinIO in the cluster."""
    with store.running(cluster, images_loaded["minio"]) as found:
        yield found


@pytest.fixture(scope="session")
def lakehouse(cluster: Cluster, minio_pod: Store, images_loaded: dict[str, Image]) -> Iterator[Release]:
    """The chart as the session installs it, with its defaults where they fit."""
    try:
        with release.installed(cluster, minio_pod, images_loaded, NAMESPACE) as found:
            yield found
    except AssertionError:
        print(f"kept: {evidence.keep(cluster, NAMESPACE, evidence.folder() / 'install')}")
        raise


@pytest.fixture(scope="session")
def truth(lakehouse: Release) -> Iterator[Truth]:
    """Watches the session's namespace all the time."""
    with Truth(lakehouse) as watch:
        yield watch


@pytest.fixture(autouse=True)
def invariants(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test of the release: no lie in a status, no restart and no unexpected error of the operator."""
    if "lakehouse" not in request.fixturenames:
        yield
        return
    found: Release = request.getfixturevalue("lakehouse")
    watch: Truth = request.getfixturevalue("truth")
    watch.caught()
    operator = OperatorWatch(found)
    yield
    marker = request.node.get_closest_marker("ends_operator")
    complaints = operator.complaints(replaced=marker is not None) + watch.caught()
    if complaints or request.node.stash.get(FAILED, False):
        folder = evidence.folder() / request.node.name
        print(f"kept: {evidence.keep(found.cluster, found.namespace, folder)}")
    assert not complaints, "\n".join(complaints)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.when == "call":  # type: ignore[attr-defined]
        item.stash[FAILED] = report.failed  # type: ignore[attr-defined]
    return report
