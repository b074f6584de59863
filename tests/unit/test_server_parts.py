"""The server's pure parts: routes, keys, bodies, problems."""

import json

import msgspec
import numpy as np
import orjson
import pytest

from lakehouse.core import errors
from lakehouse.core.errors import Invalid, Outcome
from lakehouse.remote.peer_key import PeerKey
from lakehouse.runtime import SystemRuntime
from lakehouse.server import auth, json_body, problem
from lakehouse.server.auth import Caller, Guard, KeyRefused
from lakehouse.server.http import BodyBudget, UnsupportedMediaError
from lakehouse.server.routes import ROUTES, find, route_tree
from lakehouse.server.storage_api import stored_key
from lakehouse.settings import ApiKey, Right

TREE = route_tree((route.path, route) for route in ROUTES)


@pytest.mark.parametrize(
    ("path", "name", "params"),
    [
        ("/vectors/index", "vectors.list", {}),
        ("/vectors/index/a", "vectors.get", {"name": "a"}),
        ("/vectors/index/a%2Fb/items/c%2Fd", "vectors.item", {"name": "a/b", "id": "c/d"}),
        ("/vectors/index/a/items/..", "vectors.item", {"name": "a", "id": ".."}),
        ("/storage/get/a/b%2Fc/../d", "storage.get", {"key": "a/b%2Fc/../d"}),
        ("/storage/get/", "storage.get", {"key": ""}),
    ],
)
def test_a_path_leads_to_its_route(path: str, name: str, params: dict[str, str]) -> None:
    node, found = find(TREE, path)
    assert node is not None
    assert (node.routes["GET"].name, found) == (name, params)


@pytest.mark.parametrize(
    "path", ["", "/", "/vectors", "/vectors/index/", "/vectors//index", "/storage/get", "/x"]
)
def test_a_path_that_is_no_route_leads_nowhere(path: str) -> None:
    assert find(TREE, path) == (None, {})


def test_a_key_is_256_bits_and_known_by_its_hash() -> None:
    key, digest = auth.new_key()
    assert key.startswith(auth.KEY_PREFIX)
    assert len(key) == len(auth.KEY_PREFIX) + 43
    assert digest == auth.hash_key(key.encode())
    assert auth.new_key()[0] != key
    guard = Guard([ApiKey(name="k", right=Right.WRITE, sha256=digest)])
    assert guard.check(b"Bearer " + key.encode(), Right.READ) == Caller(Right.WRITE, "k")
    with pytest.raises(KeyRefused) as weak:
        guard.check(b"bearer " + key.encode(), Right.ADMIN)
    assert weak.value.authenticated
    with pytest.raises(KeyRefused) as unknown:
        guard.check(b"Bearer " + digest.encode(), Right.READ)
    assert not unknown.value.authenticated
    assert "none that this server knows" in unknown.value.message
    with pytest.raises(KeyRefused, match="needs a key") as missing:
        guard.check(None, Right.READ)
    assert not missing.value.authenticated


def test_without_keys_every_caller_is_an_admin() -> None:
    assert Guard([]).open
    assert Guard([]).check(None, Right.ADMIN).right is Right.ADMIN


def test_the_peer_key_is_an_admin_and_closes_the_internal_routes_of_an_open_server() -> None:
    shared = "what-the-processes-share"
    key, digest = auth.new_key()
    shown = b"Bearer " + shared.encode()
    guard = Guard([ApiKey(name="k", right=Right.ADMIN, sha256=digest)], PeerKey(SystemRuntime(), shared))
    assert guard.check(shown, Right.ADMIN, internal=True) == Caller(Right.ADMIN, "peer")
    assert guard.check(b"Bearer " + key.encode(), Right.ADMIN, internal=True).name == "k"
    with pytest.raises(KeyRefused):
        guard.check(b"Bearer " + shared.encode()[:-1], Right.READ)
    open_guard = Guard([], PeerKey(SystemRuntime(), shared))
    assert open_guard.open
    assert open_guard.check(None, Right.ADMIN).name == ""
    with pytest.raises(KeyRefused):
        open_guard.check(None, Right.ADMIN, internal=True)
    assert open_guard.check(shown, Right.ADMIN, internal=True).name == "peer"


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        (b"", None),
        (b"null", b""),
        (b"{}", b""),
        (b"{ \n}", b""),
        (b"[]", b"[]"),
        (b'{"a" :1}', b'{"a" :1}'),
        (b'""', b'""'),
    ],
)
def test_metadata_keeps_clears_or_is_stored_as_it_is(text: bytes, stored: bytes | None) -> None:
    assert json_body.metadata_text(msgspec.Raw(text), "metadata") == stored


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        (b"[" * 128 + b"]" * 128, True),
        (b"[" * 129 + b"]" * 129, False),
        (b'{"a":' * 129 + b"1" + b"}" * 129, False),
        (b"[" + b"[]," * 500 + b"[]]", True),
        (b'["' + b"[" * 500 + b'"]', True),
        (b'["\\"' + b"[" * 500 + b'\\\\"]', True),
    ],
)
def test_nesting_is_counted_outside_strings(text: bytes, allowed: bool) -> None:
    json.loads(text)
    if allowed:
        json_body.check_nesting(text, "metadata")
    else:
        with pytest.raises(Invalid, match="nested deeper than 128"):
            json_body.check_nesting(text, "metadata")


def test_floats_are_float32_from_either_form() -> None:
    expected = np.array([0.1, -2, 3e38], dtype=np.float32)
    assert json_body.floats([0.1, -2, 3e38], "vector").tobytes() == expected.tobytes()
    assert np.isinf(json_body.floats([1e39], "vector")).all()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.Invalid("x"), 400),
        (auth.KeyRefused("x", authenticated=False), 401),
        (auth.KeyRefused("x", authenticated=True), 403),
        (errors.NotFound("x"), 404),
        (errors.Conflict("x"), 409),
        (errors.TooLarge("x"), 413),
        (UnsupportedMediaError("x"), 415),
        (errors.Busy("x"), 429),
        (errors.Corrupt("x"), 500),
        (errors.Unavailable("x"), 503),
        (errors.StorageFull("x", outcome=Outcome.NOT_COMMITTED), 503),
        (errors.Fenced("x"), 503),
        (errors.Denied("the bucket", authenticated=True), 503),
    ],
)
def test_each_kind_of_error_has_its_status(error: Exception, status: int) -> None:
    answer = problem.of_error(error, "r1")
    body = orjson.loads(answer.body)
    assert (answer.status, body["status"], body["request_id"]) == (status, status, "r1")
    assert answer.media_type == b"application/problem+json"
    names = {name for name, _ in answer.headers}
    assert (b"retry-after" in names) == isinstance(error, errors.Busy | errors.Unavailable)
    assert ("outcome" in body) == isinstance(error, errors.Unavailable)
    assert (b"www-authenticate" in names) == (status == 401)


def test_an_unexpected_error_shows_nothing_of_itself() -> None:
    answer = problem.of_error(RuntimeError("secret path"), "r1")
    assert answer.status == 500
    assert b"secret" not in answer.body


def test_a_lone_surrogate_in_a_message_is_shown_escaped() -> None:
    assert b"ud800" in problem.of_error(errors.NotFound("id=`\ud800`"), "r1").body


def test_the_body_budget_is_given_back() -> None:
    budget = BodyBudget(10)
    budget.take(10)
    with pytest.raises(errors.Busy):
        budget.take(1)
    budget.give(10)
    budget.take(10)
    assert budget.held == 10


@pytest.mark.parametrize(("raw", "key"), [("a/b", "a/b"), ("a%2Fb", "a%2Fb"), ("a%2fb/%25", "a%2Fb/%")])
def test_a_stored_key_keeps_slashes_inside_segments_escaped(raw: str, key: str) -> None:
    assert stored_key(raw) == key
