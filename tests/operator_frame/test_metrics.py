"""What is told of resources is what their statuses say."""

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
