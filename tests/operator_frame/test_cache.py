"""What the cache keeps, and who matters to whom."""

from typing import Any

import pytest

from lakehouse.core.errors import Invalid
from lakehouse_operator.cache import Cache, key_of, owners, parsed
from lakehouse_operator.kube import Body

PRODUCTS = ("VectorIndex", "shop", "products")
FRESH = ("VectorIndex", "shop", "fresh")
ROWS = ("Dataset", "shop", "rows")
NIGHTLY = ("IndexSnapshot", "shop", "nightly")
RESTORED = ("VectorIndex", "shop", "restored")


def thing(
    kind: str, name: str, spec: dict[str, Any] | None = None, *, version: int = 1, **metadata: Any
) -> Body:
    return {
        "apiVersion": "lakehouse.agentview.dev/v1alpha1" if spec is not None else "v1",
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": "shop",
            "uid": f"uid-{name}",
            "resourceVersion": str(version),
            "creationTimestamp": "2026-09-01T12:00:00Z",
            **metadata,
        },
        "spec": spec or {},
    }


def index(name: str, **spec: Any) -> Body:
    return thing("VectorIndex", name, {"dimension": 3, **spec})


def shop() -> Cache:
    """Everything refers to `products`, directly or not."""
    cache = Cache()
    source = {"name": "rows", "idColumn": "id", "vectorColumn": "v"}
    for body in (
        index("products", source={"dataset": source}),
        index("fresh", drain={"into": "products"}),
        index("restored", bootstrap={"snapshot": {"name": "nightly"}}),
        index("apart"),
        thing("Dataset", "rows", {"sources": [{"uri": "s3://raw/rows.csv"}]}),
        thing("IndexSnapshot", "nightly", {"indexRef": {"name": "products"}}),
        thing("IndexSnapshot", "nightly", {"indexRef": {"name": "products"}}, namespace="elsewhere"),
    ):
        assert cache.put(body)
    return cache


@pytest.mark.parametrize(
    ("key", "concerned"),
    [
        (PRODUCTS, {FRESH, ROWS, NIGHTLY}),
        (FRESH, {PRODUCTS}),
        (ROWS, {PRODUCTS}),
        (NIGHTLY, {PRODUCTS, RESTORED}),
        (RESTORED, {NIGHTLY}),
        (("VectorIndex", "shop", "apart"), set()),
        (("IndexSnapshot", "elsewhere", "nightly"), set()),
        (("Dataset", "shop", "absent"), set()),
    ],
)
def test_what_concerns_whom(key: tuple[str, str, str], concerned: set[tuple[str, str, str]]) -> None:
    assert shop().concerned(key) == concerned


def test_a_resource_that_is_gone_still_concerns_those_that_name_it() -> None:
    cache = shop()
    assert cache.remove(ROWS)
    assert cache.concerned(ROWS) == {PRODUCTS}


def test_a_child_concerns_its_owner() -> None:
    owner = {"apiVersion": "lakehouse.agentview.dev/v1alpha1", "kind": "Dataset", "name": "rows", "uid": "u"}
    other = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "x", "uid": "u"}
    job = thing("Job", "rows-ingest-1", ownerReferences=[owner])
    pod = thing("Pod", "p", ownerReferences=[other], labels={"lakehouse.agentview.dev/index": "products"})
    cache = shop()
    assert cache.put(job)
    assert cache.put(pod)
    assert cache.concerned(key_of(job)) == {ROWS}
    assert cache.concerned(key_of(pod)) == {PRODUCTS}
    assert (cache.changes(ROWS), cache.changes(PRODUCTS), cache.changes(FRESH)) == (1, 1, 0)
    assert cache.remove(key_of(pod))
    assert not cache.remove(key_of(pod))
    assert cache.changes(PRODUCTS) == 2
    assert owners(thing("Pod", "q", labels={"lakehouse.agentview.dev/dataset": "rows"})) == {ROWS}
    assert cache.concerned(("Pod", "shop", "absent")) == set()


def test_children_are_found_by_their_label_as_it_is_now() -> None:
    cache, label = Cache(), "lakehouse.agentview.dev/index"
    shard = "lakehouse.agentview.dev/shard"
    cache.put(thing("Pod", "p", labels={label: "products", shard: "0"}))
    cache.put(thing("Pod", "q", labels={label: "products", shard: "1"}))
    cache.put(thing("Pod", "far", namespace="elsewhere", labels={label: "products"}))

    def found(**labels: str) -> list[str]:
        wanted = {f"lakehouse.agentview.dev/{name}": value for name, value in labels.items()}
        return sorted(body["metadata"]["name"] for body in cache.children("Pod", "shop", wanted))

    assert found(index="products") == ["p", "q"]
    assert found(index="products", shard="1") == ["q"]
    assert found(shard="1") == ["q"]
    cache.put(thing("Pod", "p", version=2, labels={label: "others"}))
    assert (found(index="products"), found(index="others")) == (["q"], ["p"])
    cache.remove(("Pod", "shop", "q"))
    assert found(index="products") == []


def test_a_listener_hears_of_what_is_there_and_of_every_change() -> None:
    cache = Cache()
    cache.put(thing("Pod", "p"))
    heard: list[tuple[str, str | None]] = []
    cache.listen(
        lambda key, body: heard.append((key[2], str(body["metadata"]["resourceVersion"]) if body else None))
    )
    cache.put(thing("Pod", "p"))
    cache.put(thing("Pod", "p", version=2))
    cache.remove(("Pod", "shop", "p"))
    assert heard == [("p", "1"), ("p", "2"), ("p", None)]


def test_only_what_is_newer_is_news() -> None:
    cache = Cache()
    assert cache.put(thing("Pod", "p", version=9))
    assert not cache.put(thing("Pod", "p", version=9))
    assert cache.put(thing("Pod", "p", version=10))
    assert not cache.put(thing("Pod", "p", version=8))
    assert cache.resource(("Pod", "shop", "p"))["metadata"]["resourceVersion"] == "10"  # type: ignore[index]


def test_the_end_of_another_object_of_that_name_is_no_end() -> None:
    cache = Cache()
    cache.put(thing("Pod", "p", uid="second"))
    assert not cache.remove(("Pod", "shop", "p"), "first")
    assert cache.remove(("Pod", "shop", "p"), "second")
    assert not cache.remove(("Pod", "shop", "p"))


def test_managed_fields_are_not_kept() -> None:
    cache = Cache()
    body = thing("Pod", "p", managedFields=[{"manager": "kubelet"}])
    cache.put(body)
    assert "managedFields" in body["metadata"]
    assert "managedFields" not in cache.resources("Pod")[0]["metadata"]


def test_children_are_found_by_namespace_and_all_their_labels() -> None:
    cache = Cache()
    for name, namespace, labels in (
        ("a", "shop", {"index": "products", "shard": "0"}),
        ("b", "shop", {"index": "products", "shard": "1"}),
        ("c", "other", {"index": "products", "shard": "0"}),
    ):
        cache.put(thing("Pod", name, namespace=namespace, labels=labels))
    cache.put(thing("Pod", "bare"))
    found = cache.children("Pod", "shop", {"index": "products", "shard": "0"})
    assert [body["metadata"]["name"] for body in found] == ["a"]
    assert len(cache.resources("Pod")) == 4
    assert len(cache.resources("Pod", "shop")) == 3


def test_a_resource_is_parsed_once_per_version() -> None:
    cache = Cache()
    cache.put(index("products"))
    first = cache.parsed(PRODUCTS)
    assert first is not None
    assert (first.spec.dimension, first.meta.namespace, first.meta.uid) == (3, "shop", "uid-products")
    assert cache.parsed(PRODUCTS) is first
    cache.put({**index("products"), "metadata": {**index("products")["metadata"], "resourceVersion": "2"}})
    assert cache.parsed(PRODUCTS) is not first


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({}, "dimension is missing"),
        ({"dimension": 3, "distance": "hamming"}, "hamming"),
        ({"dimension": 3, "drain": 1}, "not subscriptable"),
    ],
)
def test_what_cannot_be_understood_is_no_value(spec: dict[str, Any], why: str) -> None:
    body = thing("VectorIndex", "products", spec)
    with pytest.raises(Invalid, match=why):
        parsed(body)
    cache = Cache()
    cache.put(body)
    assert cache.parsed(PRODUCTS) is None
    assert "not what this operator understands" in cache.trouble(PRODUCTS)
    assert cache.concerned(PRODUCTS) == set()
    assert cache.trouble(("VectorIndex", "shop", "absent")) == ""
