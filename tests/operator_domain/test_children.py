"""When an object in the cluster is at rest, and whose it is."""

import copy
from typing import Any

from cluster_samples import index, settings, where
from lakehouse_operator import children, resources

RESOURCE = index(replicas=2)
WANTED = resources.index(RESOURCE, where(), settings(), suspended=False)
DEPLOYMENT = WANTED[-1]


def stored() -> dict[str, Any]:
    """As an API server has it: with defaults."""
    body = copy.deepcopy(DEPLOYMENT)
    body["metadata"] |= {"uid": "d", "generation": 1, "resourceVersion": "7"}
    body["spec"]["template"]["spec"]["restartPolicy"] = "Always"
    body["spec"]["template"]["spec"]["containers"][0]["resources"]["claims"] = []
    return body


def test_defaults_and_what_others_added_do_not_count() -> None:
    assert children.says(stored(), DEPLOYMENT)
    assert children.says({"a": None}, {"a": {}})
    assert children.says({}, {"a": []})


def test_what_was_edited_or_taken_out_counts() -> None:
    there = stored()
    there["spec"]["replicas"] = 5
    assert not children.says(there, DEPLOYMENT)
    there = stored()
    there["spec"]["template"]["spec"]["containers"].append({"name": "more"})
    assert not children.says(there, DEPLOYMENT)
    there = stored()
    del there["metadata"]["labels"]["lakehouse.agentview.dev/index"]
    assert not children.says(there, DEPLOYMENT)


def test_a_status_does_not_change_the_version_and_an_edit_does() -> None:
    there = stored()
    before = children.version_of(there)
    there["metadata"]["resourceVersion"] = "8"
    assert children.version_of(there) == before
    there["metadata"]["labels"] = {}
    assert children.version_of(there) != before


def test_whose_an_object_is() -> None:
    assert children.is_ours(stored(), DEPLOYMENT, RESOURCE)
    gone = stored()
    gone["metadata"]["ownerReferences"][0]["uid"] = "of-one-that-is-gone"
    assert children.is_ours(gone, DEPLOYMENT, RESOURCE)
    others = stored()
    others["metadata"]["ownerReferences"][0]["name"] = "another"
    assert not children.is_ours(others, DEPLOYMENT, RESOURCE)
    orphan = stored()
    del orphan["metadata"]["ownerReferences"]
    assert children.is_ours(orphan, DEPLOYMENT, RESOURCE)
    foreign = {"metadata": {"name": "products-shard-0", "labels": {"app": "shop"}}}
    assert not children.is_ours(foreign, DEPLOYMENT, RESOURCE)
