"""Alerts, monitors and the dashboard speak of numbers that exist, and every alert says what to do."""

import json
import re
from collections.abc import Iterator
from typing import Any

from chart.rendering import ROOT, Body, loaded, objects, of_kind, text, values

RUNBOOKS = ROOT / "dataplane" / "RUNBOOKS.md"
METRIC = re.compile(r"\blakehouse_[a-z_]+\b")
ALL = (
    "--set",
    "metrics.serviceMonitor.enabled=true,metrics.prometheusRule.enabled=true,metrics.dashboard.enabled=true",
)


def alerts() -> list[Body]:
    (rule,) = of_kind(objects(*ALL), "PrometheusRule").values()
    return [alert for group in rule["spec"]["groups"] for alert in group["rules"]]


def dashboard() -> Body:
    config = of_kind(objects(*ALL), "ConfigMap")["lake-dashboard"]
    board: Body = json.loads(config["data"]["lakehouse.json"])
    return board


def known_metrics() -> set[str]:
    """Every name that the server and the operator export, as Prometheus stores them."""
    found = set()
    for path, prefix in (
        ("dataplane/lakehouse/server/metrics.py", ""),
        ("operator/lakehouse_operator/metrics.py", "lakehouse_operator"),
    ):
        source = (ROOT / path).read_text(encoding="utf-8").replace('f"{PREFIX}', f'"{prefix}')
        for name, kind in _families(source):
            ends = {"Counter": ("_total",), "Histogram": ("_bucket", "_count", "_sum")}.get(kind, ("",))
            found |= {name.removesuffix("_total") + end for end in ends}
    return found


def _families(source: str) -> Iterator[tuple[str, str]]:
    pattern = re.compile(r'(Counter|Gauge|Histogram)(?:MetricFamily)?\(\s*"(lakehouse_\w+)"')
    for kind, name in pattern.findall(source):
        yield name, kind


def expressions() -> Iterator[tuple[str, str]]:
    """Every query, with what asks it."""
    for alert in alerts():
        yield alert["alert"], alert["expr"]
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def test_every_query_asks_for_numbers_that_exist() -> None:
    known = known_metrics()
    assert len(known) > 20
    unknown = [
        (who, name) for who, query in expressions() for name in METRIC.findall(query) if name not in known
    ]
    assert unknown == []


def test_every_query_is_balanced_and_asks_for_something() -> None:
    for who, query in expressions():
        bare = re.sub(r'"[^"]*"', '""', query)
        for opening, closing in ("()", "{}", "[]"):
            assert bare.count(opening) == bare.count(closing), who
        assert METRIC.search(query), who


def test_every_number_is_shown_or_watched() -> None:
    asked = {name for _, query in expressions() for name in METRIC.findall(query)}
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in known_metrics()}
    shown = {re.sub(r"_(bucket|count|sum)$", "", name) for name in asked}
    alike = {"lakehouse_operator_last_snapshot_success_timestamp_seconds", "lakehouse_operator_resources"}
    assert families - shown <= alike


def test_conditions_that_are_watched_exist() -> None:
    from lakehouse.control.conditions import ConditionType

    types = {one.value for one in ConditionType}
    watched = {name for _, query in expressions() for name in re.findall(r'[{,]type="(\w+)"', query)}
    assert watched <= types
    assert {"Ready", "StorageReachable", "SnapshotCurrent", "DrainCurrent", "Fresh"} <= watched


def test_a_suspended_index_is_no_alarm_and_another_reason_is_the_same_alarm() -> None:
    watching = [
        (who, query) for who, query in expressions() if who.startswith("Lakehouse") and "_condition" in query
    ]
    assert len(watching) >= 9
    for who, query in watching:
        assert query.startswith("max by ("), who
        assert "reason" not in query.partition(")")[0], who
        if 'kind="VectorIndex"' in query and ('type="Ready"' in query or 'type="UpToDate"' in query):
            assert 'reason!="Suspended"' in query, who


def test_routes_that_are_watched_exist() -> None:
    from lakehouse.server.routes import ROUTES

    names = {route.name for route in ROUTES}
    for who, query in expressions():
        for exact in re.findall(r'route="([^"]+)"', query):
            assert exact in names, who
        for pattern in re.findall(r'route=~"([^"]+)"', query):
            assert any(re.fullmatch(pattern, name) for name in names), who


def test_every_alert_says_how_bad_it_is_since_when_and_what_to_do() -> None:
    names = [alert["alert"] for alert in alerts()]
    assert len(names) == len(set(names)) >= 15
    for alert in alerts():
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert re.fullmatch(r"\d+[mh]", alert["for"])
        assert alert["annotations"]["summary"].endswith(".")
        assert alert["annotations"]["runbook_url"].endswith(f"#{alert['alert'].lower()}")


def test_every_alert_has_a_section_in_the_runbooks_and_none_is_of_no_alert() -> None:
    headings = re.findall(r"^#+ (Lakehouse\w+)\s*$", RUNBOOKS.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(headings) == sorted(alert["alert"] for alert in alerts())


def test_alerts_about_the_operator_are_about_this_releases() -> None:
    ours = 'namespace="shop",service="lake-operator"'
    asked = {alert["alert"]: alert["expr"] for alert in alerts()}
    for name in ("LakehouseOperatorDown", "LakehouseOperatorFailing", "LakehouseOperatorBehind"):
        asked_for = METRIC.findall(asked[name])
        assert asked_for
        assert asked[name].count(f"{{{ours}}}") == len(asked_for), asked[name]


def test_a_snapshot_may_be_late_for_as_long_as_was_said() -> None:
    arguments = ("--set", "metrics.prometheusRule.enabled=true", *values("production"))
    (late,) = (one for one in _rules(*arguments) if one["alert"] == "LakehouseSnapshotOverdue")
    assert late["for"] == "60m"


def _rules(*arguments: str) -> list[Body]:
    (rule,) = of_kind(objects(*arguments), "PrometheusRule").values()
    return [alert for group in rule["spec"]["groups"] for alert in group["rules"]]


def test_panels_do_not_overlap_and_have_a_source() -> None:
    board = dashboard()
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["targets"], panel["title"]
            assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_monitors_ask_for_every_pod_once_and_with_a_key() -> None:
    bodies = objects(*ALL)
    services = of_kind(bodies, "Service")
    asked: dict[str, Any] = {}
    for name, monitor in of_kind(bodies, "ServiceMonitor").items():
        selector = monitor["spec"]["selector"]["matchLabels"].items()
        chosen = [key for key, body in services.items() if selector <= body["metadata"]["labels"].items()]
        assert chosen == [name]
        (endpoint,) = monitor["spec"]["endpoints"]
        assert endpoint["port"] in {port["name"] for port in services[name]["spec"]["ports"]}
        asked[name] = endpoint.get("authorization", {}).get("credentials")
    key = {"name": "lake-keys", "key": "read"}
    assert asked == {"lake-gateway": key, "lake-operator": None, "lake-pool": key, "lake-query": key}


def test_index_pods_are_asked_for_where_they_are() -> None:
    def where(*arguments: str) -> Any:
        return of_kind(objects(*ALL, *arguments), "PodMonitor")["lake-index"]["spec"]["namespaceSelector"]

    assert where() == {"matchNames": ["shop"]}
    assert where("--set", "watchNamespaces={a,b}") == {"matchNames": ["a", "b"]}
    assert where("--set", "watchNamespaces={*}") == {"any": True}


def test_index_pods_are_those_that_the_operator_makes() -> None:
    from lakehouse_operator import names

    monitor = of_kind(objects(*ALL), "PodMonitor")["lake-index"]
    labels = names.labels("index", index="products")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    policies = of_kind(objects("--set", "networkPolicy.enabled=true"), "NetworkPolicy")
    assert policies["lake-index"]["spec"]["podSelector"]["matchLabels"].items() <= labels.items()


def test_nothing_is_watched_unless_it_was_asked_for() -> None:
    kinds = {body["kind"] for body in loaded(text("--set", "crds.enabled=false"))}
    assert not kinds & {"ServiceMonitor", "PodMonitor", "PrometheusRule", "NetworkPolicy", "Ingress"}
