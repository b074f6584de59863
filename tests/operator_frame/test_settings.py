"""Settings come from the environment, and what is wrong is named."""

import json
import logging
import sys

import pytest

from lakehouse.core.errors import Invalid
from lakehouse_operator import health, logs, settings
from lakehouse_operator.settings import LogFormat, PullPolicy, load


def test_what_the_chart_sets_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "NAMESPACE": "lake",
        "WATCH_NAMESPACES": "shop, lake,shop",
        "IMAGE": "registry.example.com/lakehouse:1",
        "IMAGE_PULL_POLICY": "Always",
        "IMAGE_PULL_SECRETS": "a,b",
        "DEFAULT_S3_BUCKET": "lakehouse",
        "POD_DEFAULTS": '{"resources": {"limits": {"memory": "1Gi"}}}',
        "RESYNC_S": "60",
        "LOG_LEVEL": "debug",
        "LOG_FORMAT": "text",
        "KEYS": '[{"name": "a"}]',
    }.items():
        monkeypatch.setenv(f"LAKEHOUSE_OPERATOR_{name}", value)
    found = load()
    assert (found.namespace, found.namespaces, found.clusterwide) == ("lake", ("shop", "lake"), False)
    assert (found.image_pull_policy, found.image_pull_secrets) == (PullPolicy.ALWAYS, ("a", "b"))
    assert found.pod_defaults == {"resources": {"limits": {"memory": "1Gi"}}}
    assert (found.resync_s, found.log_level, found.log_format) == (60.0, "DEBUG", LogFormat.TEXT)
    assert found.keys == '[{"name": "a"}]'
    assert found.default_s3_prefix == "{namespace}"
    assert found.serves("shop")
    assert not found.serves("other")


def test_without_a_list_the_releases_own_namespace_is_served() -> None:
    found = load(namespace="lake")
    assert (found.namespaces, found.clusterwide) == (("lake",), False)
    everything = load(namespace="lake", watch_namespaces="*")
    assert (everything.namespaces, everything.clusterwide) == ((), True)
    assert everything.serves("any")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORKERS", "0"),
        ("LOG_FORMAT", "xml"),
        ("HEALTH_PORT", "x"),
        ("POD_DEFAULTS", "{"),
        ("POD_DEFAULTS", "[]"),
        ("POD_DEFAULTS", '{"nodeSelectors": {}}'),
        ("POD_DEFAULTS", '{"env": [{"name": "A"}]}'),
        ("POD_DEFAULTS", '{"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}'),
        ("POD_DEFAULTS", '{"env": [{"name": "LAKEHOUSE_DATA", "value": "s3://mine"}]}'),
    ],
)
def test_what_cannot_be_right_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"LAKEHOUSE_OPERATOR_{name}", value)
    with pytest.raises(Invalid, match=f"LAKEHOUSE_OPERATOR_{name}") as refused:
        load()
    assert (f"{name}=`{value}`" in refused.value.message) == (name != "POD_DEFAULTS")


@pytest.mark.parametrize("watched", ["a,b", "*"])
def test_namespaces_that_share_a_bucket_share_no_prefix(watched: str) -> None:
    for prefix in ("team", "/", ""):
        with pytest.raises(Invalid, match=r"LAKEHOUSE_OPERATOR_DEFAULT_S3_PREFIX: .*\{namespace\}"):
            load(watch_namespaces=watched, default_s3_prefix=prefix)
    assert load(watch_namespaces=watched, default_s3_prefix="team/{namespace}")
    assert load(watch_namespaces="a", default_s3_prefix="team")


def test_every_setting_is_described() -> None:
    assert [name for name, field in settings.Settings.model_fields.items() if not field.description] == []


def test_a_log_line_is_one_json_object_with_its_trace() -> None:
    record = logging.LogRecord("a.b", logging.ERROR, "f", 1, "cannot. name=%s", ("x\ny",), None)
    try:
        raise ValueError("why")
    except ValueError:
        record.exc_info = sys.exc_info()
    text = logs.JsonFormatter().format(record)
    line = json.loads(text)
    assert "\n" not in text
    assert (line["level"], line["logger"], line["message"]) == ("ERROR", "a.b", "cannot. name=x\ny")
    assert "ValueError: why" in line["exception"]


def test_turns_that_do_not_end_are_unhealthy() -> None:
    assert health.stuck(0, 0) == ""
    assert health.stuck(health.QUEUE_OLDEST_S_MAX, health.TURN_S_MAX) == ""
    assert "waited 301 s" in health.stuck(301, 0)
    assert "taken 901 s" in health.stuck(0, 901)
