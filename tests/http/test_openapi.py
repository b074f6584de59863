"""The OpenAPI document is true: driven from it, no route answers 500 or what the document does not say."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema

from lakehouse.server import openapi
from lakehouse.server.auth import new_key
from lakehouse.server.routes import ROUTES, VERSION_PREFIX
from live_server import LiveServer, serving

EXAMPLES = 25
"""Random cases per operation, beside the boundary cases; about 1,600 requests in all."""
KNOWN = "known"
"""An index of dimension 1, so that short vectors fit it."""
KEY, KEY_SHA256 = new_key()
KEYS = orjson.dumps([{"name": "driver", "right": "admin", "sha256": KEY_SHA256}]).decode()
HEADERS = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    home: Path = tmp_path_factory.mktemp("driven")
    with serving("memory:", home / "log", env={"LAKEHOUSE_KEYS": KEYS}) as server:
        with httpx.Client(base_url=f"{server.url}/v1/vectors", headers=HEADERS, timeout=60) as client:
            for name in (KNOWN, "other"):
                body = {"name": name, "dimension": 1, "distance": "dot"}
                assert client.post("/index", json=body).status_code == 201
            items = [{"id": name, "vector": [1], "metadata": {"n": 1}} for name in ("0", "a")]
            assert client.post(f"/index/{KNOWN}/add", json={"items": items}).status_code == 200
        yield server


def config(**more: Any) -> SchemathesisConfig:
    return SchemathesisConfig.from_dict(
        {
            "generation": {
                "max-examples": EXAMPLES,
                "deterministic": True,
                "database": "none",
                "allow-extra-parameters": False,
            },
            "phases": {"stateful": {"enabled": False}},
            # A document cannot say that a vector has the dimension of its index, nor that a filter parses.
            "checks": {"positive_data_acceptance": {"enabled": False}},
            "auth": {"openapi": {"key": {"bearer": KEY}}},
            "request-timeout": 60,
            "continue-on-failure": True,
        }
        | more
    )


@pytest.mark.parametrize("aim", ["anywhere", KNOWN])
def test_every_operation_answers_as_described(driven: LiveServer, aim: str) -> None:
    chosen = config()
    if aim == KNOWN:
        keep = {"include-operation-id": "vectors.drop", "enabled": False}
        chosen = config(parameters={"path.name": KNOWN}, operations=[keep])
    schema = schemathesis.openapi.from_url(f"{driven.url}/openapi.json", headers=HEADERS, config=chosen)
    failures, statuses = [], []
    for event in from_schema(schema).execute():
        assert not isinstance(event, events.NonFatalError | events.FatalError), str(event)
        if not isinstance(event, events.ScenarioFinished):
            continue
        statuses += [
            seen.response.status_code for seen in event.recorder.interactions.values() if seen.response
        ]
        failures += [
            (event.label, check.name, check.failure_info.failure.message, check.failure_info.code_sample)
            for checks in event.recorder.checks.values()
            for check in checks
            if check.failure_info is not None
        ]
    assert not failures, failures[:5]
    assert len(statuses) > 500
    assert sum(status < 300 for status in statuses) > 100


def test_every_route_is_described_and_nothing_else() -> None:
    assert {route.name for route in ROUTES} == set(openapi.OPERATIONS)
    described = {
        (method.upper(), path)
        for path, operations in openapi.document()["paths"].items()
        for method in operations
    }
    assert described == {
        (route.method, ("" if route.role is None else VERSION_PREFIX) + route.path.replace("...}", "}"))
        for route in ROUTES
    }


def test_the_hot_routes_name_all_their_bodies() -> None:
    paths = openapi.document()["paths"]
    for verb in ("add", "search", "search/batch"):
        content = paths[f"/v1/vectors/index/{{name}}/{verb}"]["post"]["requestBody"]["content"]
        assert {"application/json", "application/octet-stream"} <= set(content)
