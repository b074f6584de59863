"""The routing table says where every declared index is, and is what a gateway reads."""

import json
from typing import Any

from lakehouse.server import routing_table
from lakehouse_operator import routes


def body(name: str, ready: str = "True", accepted: str = "Valid", **spec: Any) -> dict[str, Any]:
    conditions = [
        {"type": "Ready", "status": ready, "reason": "x"},
        {"type": "Accepted", "status": "True", "reason": accepted},
    ]
    return {
        "metadata": {"name": name, "namespace": "shop"},
        "spec": spec,
        "status": {"conditions": conditions},
    }


LATEST = {"dataset": {"name": "catalog", "follow": "Latest"}}


def test_every_declared_index_is_in_the_table_ready_or_not() -> None:
    new = {"metadata": {"name": "new", "namespace": "shop"}, "spec": {}}
    found = routes.table([body("products", source=LATEST), body("asleep", ready="False"), new])["indexes"]
    assert list(found) == ["asleep", "new", "products"]
    assert [found[name]["ready"] for name in found] == [False, False, True]
    assert found["products"] == {
        "url": "http://products.shop.svc:3110",
        "resource": "VectorIndex/shop/products",
        "ready": True,
        "read_only": True,
        "shard_url": "http://products-shard-{shard}.shop.svc:3110",
    }


def test_an_index_that_belongs_to_another_owner_is_not_ours_to_route() -> None:
    assert routes.table([body("theirs", accepted="PrefixTaken")])["indexes"] == {}


def test_the_gateway_reads_what_is_written() -> None:
    made = routes.config_map("shop", "lakehouse-routes", routes.table([body("products")]))
    read = routing_table.parse(made["data"][routing_table.KEY])
    assert read.ready_names == {"products"}
    assert json.loads(made["data"][routes.KEY])["version"] == routing_table.VERSION
