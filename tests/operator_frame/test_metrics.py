"""What is told of resources is what their statuses say."""

from typing import Any

from lakehouse.runtime import SystemRuntime
from lakehouse_operator.cache import Cache
from lakehouse_operator.metrics import Metrics
from operator_frame.test_cache import index


def test_a_condition_is_told_with_its_reason() -> None:
    runtime, cache = SystemRuntime(1), Cache()
    told = {"type": "Ready", "status": "False", "reason": "Suspended"}
    cache.put({**index("products"), "status": {"conditions": [told]}})
    lines = Metrics(runtime, cache).exposition().decode().splitlines()
    runtime.close()
    assert (
        'lakehouse_operator_condition{kind="VectorIndex",name="products",namespace="shop",reason="Suspended",'
        'status="False",type="Ready"} 1.0'
    ) in lines


def test_replicas_are_missing_of_what_has_served_and_is_to_serve() -> None:
    runtime, cache = SystemRuntime(1), Cache()

    def told(name: str, status: dict[str, Any], **spec: Any) -> None:
        cache.put({**index(name, replicas=3, **spec), "status": status})

    told("short", {"position": "1:1", "readyReplicas": 1})
    told("whole", {"position": "1:1", "readyReplicas": 3})
    told("scaled-down", {"position": "1:1", "readyReplicas": 4})
    told("asleep", {"position": "1:1", "readyReplicas": 0}, suspend=True)
    told("being-built", {"readyReplicas": 0})
    text = Metrics(runtime, cache).exposition().decode()
    runtime.close()
    name = "lakehouse_operator_index_replicas_missing"
    assert [line for line in text.splitlines() if line.startswith(name)] == [
        f'{name}{{name="short",namespace="shop"}} 2.0',
        f'{name}{{name="whole",namespace="shop"}} 0.0',
        f'{name}{{name="scaled-down",namespace="shop"}} 0.0',
    ]


def test_what_the_process_costs_is_told_under_the_usual_names() -> None:
    runtime = SystemRuntime(1)
    lines = Metrics(runtime, Cache()).exposition().decode().splitlines()
    runtime.close()
    numbers = dict(line.split() for line in lines if line.startswith("process_"))
    assert float(numbers["process_resident_memory_bytes"]) > 10 << 20
    assert float(numbers["process_cpu_seconds_total"]) > 0
