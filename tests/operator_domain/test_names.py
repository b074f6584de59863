"""Names of children: short enough at their limits, the same every time, and never the same for two things."""

import re

import pytest

from lakehouse_operator import names

LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
LONGEST = "a" + "b" * 61 + "c"


@pytest.mark.parametrize(
    "index", ["p", "products", "a-1", LONGEST, "a" * 54, "a" * 55, "a" * 50 + "-" * 12 + "b"]
)
def test_children_are_named_as_kubernetes_allows(index: str) -> None:
    for number in (0, 9, 63):
        assert LABEL.fullmatch(names.shard(index, number))
    assert LABEL.fullmatch(names.service(index))
    for act in ("Build", "Restore", "Rebuild", "Ingest"):
        name = names.job(index, act, "seed")
        assert LABEL.fullmatch(name)
        assert len(f"{name}-63") <= 63  # an Indexed Job's pods carry their number behind it
    assert len(names.certificates("VectorIndex", index)) <= 63


def test_short_names_say_what_they_are() -> None:
    assert names.service("products") == "products"
    assert names.shard("products", 3) == "products-shard-3"
    assert re.fullmatch(r"products-build-[0-9a-f]{8}", names.job("products", "Build", "x"))


def test_names_that_are_cut_alike_stay_apart() -> None:
    one, other = "a" * 62 + "x", "a" * 62 + "y"
    assert names.shard(one, 0) != names.shard(other, 0)
    assert names.job(one, "Build", "s") != names.job(other, "Build", "s")
    assert names.job("products", "Build", "s") != names.job("products", "Build", "t")
    assert names.certificates("VectorIndex", "a") != names.certificates("Dataset", "a")


@pytest.mark.parametrize("index", ["products", LONGEST])
def test_the_template_of_shards_leads_to_each_shards_service(index: str) -> None:
    template = names.shard_url(index, "shop")
    for number in (0, 7, 63):
        assert (
            template.replace("{shard}", str(number)) == f"http://{names.shard(index, number)}.shop.svc:3110"
        )


def test_a_shards_selector_is_narrower_than_its_indexs() -> None:
    assert names.selector("products").items() < names.selector("products", 1).items()
    assert names.selector("products").items() <= {**names.labels("index", index="products")}.items()
