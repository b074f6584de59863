"""The client against a scripted HTTP server: what it sends, how it reads errors, what it repeats and what never."""

import socketserver
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

import numpy as np
import orjson
import pyarrow as pa
import pytest

from lakehouse.client import BACKOFF_MAX_S, AsyncClient, Client, Request, Retries, arrow_batch
from lakehouse.core import errors
from lakehouse.core.errors import Outcome

SOON = Retries(attempts_max=3, first_s=0.001)
READ, ONCE = Request("GET", "/x"), Request("POST", "/x", repeatable=False)

Answer = tuple[int, dict[str, object], dict[str, str]]


@dataclass
class Script:
    """Answers given in turn, the last one for ever; None hangs up without an answer."""

    answers: Sequence[Answer | None]
    url: str = ""
    seen: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    def next(self) -> Answer | None:
        return self.answers[min(len(self.seen), len(self.answers)) - 1]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: Script

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.script.seen.append((self.command, self.path, headers, body))
        answer = self.script.next()
        if answer is None:
            self.close_connection = True
            return
        status, value, extra = answer
        text = orjson.dumps(value)
        self.send_response(status)
        for name, content in {"content-length": str(len(text)), **extra}.items():
            self.send_header(name, content)
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 - the names http.server calls

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator["Starter"]:
    starter = Starter()
    yield starter
    starter.close()


class Starter:
    def __init__(self) -> None:
        self._servers: list[socketserver.ThreadingTCPServer] = []

    def __call__(self, *answers: Answer | None) -> Script:
        script = Script(answers)
        handler = type("Scripted", (Handler,), {"script": script})
        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        script.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self._servers.append(server)
        return script

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


def problem(status: int, **extra: object) -> Answer:
    return status, {"title": "t", "status": status, "detail": "it went wrong", **extra}, {}


ADDED: Answer = (200, {"added": 1, "length": 7}, {"lakehouse-position": "0" * 32 + ":3"})


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (problem(400), errors.Invalid),
        (problem(401), errors.Denied),
        (problem(403), errors.Denied),
        (problem(404), errors.NotFound),
        (problem(409), errors.Conflict),
        (problem(413), errors.TooLarge),
        (problem(429), errors.Busy),
        (problem(500), errors.Unavailable),
        (problem(503, outcome="not_committed"), errors.Unavailable),
    ],
)
def test_each_status_is_raised_as_its_kind_with_the_servers_words(
    serve: Starter, answer: Answer, kind: type[errors.LakehouseError]
) -> None:
    with (
        Client(serve(answer).url, retries=Retries(attempts_max=1)) as lake,
        pytest.raises(kind, match="went wrong"),
    ):
        lake.index("docs")


@pytest.mark.parametrize("url", ["127.0.0.1:3110", "localhost:3110", "./lakehouse-data"])
def test_an_address_without_its_scheme_is_told_at_once(url: str) -> None:
    with pytest.raises(errors.Invalid, match="begins with http"):
        Client(url)


def test_the_outcome_of_a_503_is_kept(serve: Starter) -> None:
    script = serve(problem(503, outcome="not_committed"))
    with (
        Client(script.url, retries=Retries(attempts_max=1)) as lake,
        pytest.raises(errors.Unavailable) as raised,
    ):
        lake.index("docs")
    assert raised.value.outcome is Outcome.NOT_COMMITTED


def test_an_answer_that_is_not_json_is_told_as_a_foreign_server(serve: Starter) -> None:
    script = serve((500, {}, {}))
    with Client(script.url, retries=Retries(attempts_max=1)) as lake, pytest.raises(errors.Unavailable):
        lake.index("docs")


@pytest.mark.parametrize("failure", [None, problem(429), problem(503, outcome="unknown")])
def test_an_add_is_repeated_with_the_same_bytes_under_the_same_key(
    serve: Starter, failure: Answer | None
) -> None:
    script = serve(failure, failure, ADDED)
    with Client(script.url, retries=SOON) as lake:
        result = lake.add("docs", ["a"], [[1.0, 2.0]], [{"x": 1}])
    assert (result.added, result.length, len(script.seen)) == (1, 7, 3)
    assert len({headers["idempotency-key"] for _, _, headers, _ in script.seen}) == 1
    assert len({body for _, _, _, body in script.seen}) == 1


def test_two_adds_have_two_keys(serve: Starter) -> None:
    script = serve(ADDED)
    with Client(script.url) as lake:
        lake.add("docs", ["a"], [[1.0, 2.0]])
        lake.add("docs", ["a"], [[1.0, 2.0]])
    assert len({headers["idempotency-key"] for _, _, headers, _ in script.seen}) == 2


async def test_the_async_client_repeats_alike(serve: Starter) -> None:
    script = serve(None, problem(503, outcome="unknown"), ADDED)
    async with AsyncClient(script.url, retries=SOON) as lake:
        result = await lake.add("docs", ["a"], [[1.0, 2.0]])
    assert result.added == 1
    assert len({headers["idempotency-key"] for _, _, headers, _ in script.seen}) == 1


def test_attempts_are_bounded(serve: Starter) -> None:
    script = serve(problem(429))
    with Client(script.url, retries=SOON) as lake, pytest.raises(errors.Busy):
        lake.indexes()
    assert len(script.seen) == SOON.attempts_max


def test_a_create_that_may_have_happened_is_not_repeated(serve: Starter) -> None:
    script = serve(problem(503, outcome="unknown"))
    with Client(script.url, retries=SOON) as lake, pytest.raises(errors.Unavailable):
        lake.create("docs", 3)
    assert len(script.seen) == 1


def test_a_create_that_certainly_did_not_happen_is_repeated(serve: Starter) -> None:
    created: Answer = (201, {"params": {"name": "docs", "dimension": 3, "distance": "dot"}, "length": 0}, {})
    script = serve(problem(503, outcome="not_committed"), created)
    with Client(script.url, retries=SOON) as lake:
        assert lake.create("docs", 3, distance="dot").params.dimension == 3
    assert len(script.seen) == 2


def test_bad_requests_are_never_repeated(serve: Starter) -> None:
    script = serve(problem(400))
    with Client(script.url, retries=SOON) as lake, pytest.raises(errors.Invalid):
        lake.indexes()
    assert len(script.seen) == 1


@pytest.mark.parametrize("attempt", range(1, 12))
@pytest.mark.parametrize("chance", [0.0, 0.999])
def test_waits_grow_with_jitter_and_stay_bounded(attempt: int, chance: float) -> None:
    wait = Retries(attempts_max=100).delay(READ, errors.Busy("x", retry_after_s=0.0), attempt, chance)
    assert wait is not None
    full = min(BACKOFF_MAX_S, 0.25 * 2 ** (attempt - 1))
    assert full / 2 <= wait <= full


def test_the_servers_retry_after_is_waited_for_within_reason() -> None:
    assert Retries().delay(READ, errors.Busy("x", retry_after_s=3.0), 1, 0.5) == 3.0
    assert Retries().delay(READ, errors.Busy("x", retry_after_s=3_600.0), 1, 0.5) == BACKOFF_MAX_S


def test_unknown_outcomes_are_repeated_only_where_that_is_safe() -> None:
    unknown = errors.Unavailable("x", outcome=Outcome.UNKNOWN, retry_after_s=0.0)
    assert Retries().delay(READ, unknown, 1, 0.5) is not None
    assert Retries().delay(ONCE, unknown, 1, 0.5) is None


def test_the_key_and_the_address_come_from_the_environment(
    serve: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = serve((200, {"names": ["a"], "count": 1}, {}))
    monkeypatch.setenv("LAKEHOUSE_URL", script.url + "/")
    monkeypatch.setenv("LAKEHOUSE_API_KEY", "secret")
    with Client() as lake:
        assert lake.indexes() == ("a",)
    assert script.seen[0][2]["authorization"] == "Bearer secret"


def test_names_ids_and_keys_are_escaped(serve: Starter) -> None:
    script = serve((200, {"id": "a/b ?", "vector": [1.0], "metadata": None}, {}))
    with Client(script.url) as lake:
        lake.item("docs", "a/b ?")
        lake.storage_get("x y/ü%")
    assert [path for _, path, _, _ in script.seen] == [
        "/v1/vectors/index/docs/items/a%2Fb%20%3F",
        "/v1/storage/get/x%20y/%C3%BC%25",
    ]


def test_an_arrow_batch_holds_the_very_bits() -> None:
    vectors = np.array([[np.pi, -0.0], [1e-40, 3.4e38]], dtype=np.float32)
    table = pa.ipc.open_stream(arrow_batch(["a", "b"], vectors, [{"x": 1}, None])).read_all()
    stored = table["vector"].combine_chunks().flatten().to_numpy().reshape(2, 2)
    assert stored.tobytes() == vectors.tobytes()
    assert table["metadata"].to_pylist() == ['{"x":1}', None]


def test_lengths_that_differ_are_refused_before_anything_is_sent() -> None:
    with pytest.raises(errors.Invalid, match="same length"):
        arrow_batch(["a"], [[1.0], [2.0]])


def test_a_vector_of_numpy_is_sent_as_numbers_that_read_back_the_same(serve: Starter) -> None:
    script = serve((200, {"results": [{"id": "a", "distance": 0.5, "metadata": {"x": 1}}]}, {}))
    vector = np.array([np.pi, 1 / 3], dtype=np.float32)
    with Client(script.url) as lake:
        found = lake.search("docs", vector, k=3, filter="x = 1")
    body = orjson.loads(script.seen[0][3])
    assert np.array(body["vector"], dtype=np.float32).tobytes() == vector.tobytes()
    assert (body["k"], body["filter"]) == (3, "x = 1")
    assert (found.matches[0].id, found.matches[0].metadata) == ("a", {"x": 1})
