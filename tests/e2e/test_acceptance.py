"""The two acceptance scripts of the earlier system, through the gateway Service against the pool of two replicas.

What was `kill -9` there is `kubectl delete pod --force` here, of every pod of the pool, or of one in turn.
"""

from collections.abc import Iterator

import httpx
import pytest

from acceptance import create_add_search_and_refuse, outlive_kills_and_stay_dropped
from e2e.release import Release
from e2e.waiting import until


@pytest.fixture
def http(lakehouse: Release) -> Iterator[httpx.Client]:
    with lakehouse.http() as client:
        yield client


def kill_pool(release: Release) -> None:
    """Every pod of the pool at once, without a word of warning, and wait for those that come after them."""
    pods = [pod["metadata"]["name"] for pod in release.pods("pool")]
    assert len(pods) == 2
    release.cluster.kubectl(
        "delete", "pod", *pods, "--force", "--grace-period=0", namespace=release.namespace
    )
    release.cluster.wait_for_rollout(release.namespace, f"{release.name}-pool")
    with release.http() as client:
        until("the gateway to reach the pool", lambda: client.get("/v1/vectors/index").status_code == 200)


def test_create_add_search_and_refuse(http: httpx.Client) -> None:
    create_add_search_and_refuse(http, rounds=4)
    assert http.delete("/v1/vectors/index/workers_demo").status_code == 204


def test_an_index_outlives_its_pods_and_a_dropped_one_stays_dropped(
    lakehouse: Release, http: httpx.Client
) -> None:
    outlive_kills_and_stay_dropped(http, lambda: kill_pool(lakehouse))


def test_nothing_is_answered_without_a_key(lakehouse: Release) -> None:
    with lakehouse.http("") as nobody:
        assert nobody.get("/v1/vectors/index").status_code == 401
        assert nobody.get("/health").status_code == 200
    with lakehouse.http("read") as reader:
        refused = reader.post("/v1/vectors/index", json={"name": "refused", "dimension": 2})
        assert refused.status_code == 403
