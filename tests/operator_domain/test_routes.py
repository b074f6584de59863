"""The routing table says where every declared index is, and is what a gateway reads."""

import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from lakehouse.server import routing_table
from lakehouse_operator import routes
from lakehouse_operator.cache import Cache
from lakehouse_operator.kube import Body
from lakehouse_operator.parts import Parts


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
ONCE = {"dataset": {"name": "catalog", "follow": "Once"}}


def test_every_declared_index_is_in_the_table_ready_or_not() -> None:
    new = {"metadata": {"name": "new", "namespace": "shop"}, "spec": {}}
    found = routes.table("shop", [body("products", source=LATEST), body("asleep", ready="False"), new])[
        "indexes"
    ]
    assert list(found) == ["asleep", "new", "products"]
    assert [found[name]["ready"] for name in found] == [False, False, True]
    assert found["products"] == {
        "url": "http://products.shop.svc:3110",
        "resource": "VectorIndex/shop/products",
        "ready": True,
        "suspended": False,
        "read_only": True,
        "follows": "catalog",
        "shard_url": "http://products-shard-{shard}.shop.svc:3110",
    }


def test_an_index_that_belongs_to_another_owner_is_not_ours_to_route() -> None:
    assert routes.table("shop", [body("theirs", accepted="PrefixTaken")])["indexes"] == {}


def test_an_index_that_was_built_once_follows_nothing() -> None:
    found = routes.table("shop", [body("products", source=ONCE)])["indexes"]["products"]
    assert (found["read_only"], found["follows"]) == (False, "")


def test_every_declared_dataset_is_in_the_table_by_its_name() -> None:
    found = routes.table("shop", [], [body("products"), body("clicks", ready="False")])
    assert (found["namespace"], found["datasets"]) == ("shop", ["clicks", "products"])


def test_hundreds_of_datasets_take_little_of_a_config_map() -> None:
    """It holds 1 MiB; a name has 63 characters at most."""
    many = [body(f"d{n:0>62}") for n in range(200)]
    made = routes.config_map("shop", "lakehouse-routes", routes.table("shop", [], many))
    assert len(made["data"][routes.KEY]) < 16 << 10


def test_the_gateway_reads_what_is_written() -> None:
    table = routes.table("shop", [body("products", source=LATEST)], [body("clicks")])
    made = routes.config_map("shop", "lakehouse-routes", table)
    read = routing_table.parse(made["data"][routing_table.KEY])
    assert read.ready_names == {"products"}
    assert read.indexes["products"].follows == "catalog"
    assert read.declares_dataset("clicks") == "Dataset/shop/clicks"
    assert read.declares_dataset("products") is None
    assert json.loads(made["data"][routes.KEY])["version"] == routing_table.VERSION


def test_a_gateway_reads_the_tables_of_the_releases_before_and_after_its_own() -> None:
    place = {"url": "http://products.shop.svc:3110", "resource": "VectorIndex/shop/products", "ready": True}
    before = {"version": 1, "indexes": {"products": place}}
    read = routing_table.parse(json.dumps(before))
    assert read.ready_names == {"products"}
    assert read.declares_dataset("clicks") is None
    after = {
        "version": 1,
        "namespace": "shop",
        "indexes": {"products": place | {"later": 1}},
        "datasets": ["clicks"],
        "later": {"a": 1},
    }
    read = routing_table.parse(json.dumps(after))
    assert read.ready_names == {"products"}
    assert read.declares_dataset("clicks") == "Dataset/shop/clicks"


@dataclass
class Written:
    """An API server that keeps what was applied, and a clock."""

    bodies: list[Body] = field(default_factory=list)
    at_s: float = 0.0

    async def apply(self, body: Body) -> Body:
        self.bodies.append(body)
        return body

    def monotonic(self) -> float:
        return self.at_s

    @property
    def tables(self) -> list[dict[str, Any]]:
        return [json.loads(body["data"][routes.KEY]) for body in self.bodies]


def cached(cache: Cache, kind: str, name: str, version: int, namespace: str = "shop") -> None:
    found = body(name)
    found["metadata"] |= {"namespace": namespace, "uid": name, "resourceVersion": str(version)}
    cache.put({"kind": kind, **found})


async def test_the_table_is_written_when_a_dataset_comes_or_goes_and_not_otherwise() -> None:
    written, cache = Written(), Cache()
    settings = SimpleNamespace(namespace="shop", routes_configmap="lakehouse-routes")
    parts = SimpleNamespace(settings=settings, cache=cache, kube=written, runtime=written)
    kept = routes.Routes(cast("Parts", parts))
    cached(cache, "VectorIndex", "products", 1)
    cached(cache, "Dataset", "clicks", 2)
    for version in (3, 4):
        cached(cache, "Dataset", "clicks", version)  # its status changed
        await kept.write()
    cached(cache, "Dataset", "far", 5, namespace="elsewhere")
    await kept.write()
    assert [table["datasets"] for table in written.tables] == [["clicks"]]
    cached(cache, "Dataset", "visits", 6)
    await kept.write()
    cache.remove(("Dataset", "shop", "clicks"))
    await kept.write()
    await kept.write()
    assert [table["datasets"] for table in written.tables[1:]] == [["clicks", "visits"], ["visits"]]
    written.at_s += routes.CHECK_S
    await kept.write()  # somebody may have edited it
    assert written.bodies[3:] == written.bodies[2:3]


async def test_the_table_may_be_ahead_of_a_status_that_is_about_to_be_written() -> None:
    written, cache = Written(), Cache()
    settings = SimpleNamespace(namespace="shop", routes_configmap="lakehouse-routes")
    kept = routes.Routes(
        cast("Parts", SimpleNamespace(settings=settings, cache=cache, kube=written, runtime=written))
    )
    coming = body("products")
    coming["metadata"]["namespace"] = "shop"
    await kept.write(coming)
    assert written.tables[-1]["indexes"]["products"]["ready"]
    far = body("far")
    far["metadata"]["namespace"] = "elsewhere"
    await kept.write(far)
    assert written.tables[-1]["indexes"] == {}
