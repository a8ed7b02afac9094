"""What the command line makes of a gateway's answers, and of servers that are none."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tokenfleet.cli.chat.answer import Answer, receive
from tokenfleet.cli.chat.session import Session, choose_model
from tokenfleet.cli.chat.terminal import printable
from tokenfleet.cli.errors import CliError
from tokenfleet.cli.gateway_http import Event, GatewayError, GatewayHttp, Loading
from tokenfleet.gateway.http.sinks import progress_text
from tokenfleet.v1 import common_pb2


class Scripted(ThreadingHTTPServer):
    """Answers every request with the same bytes; keeps what was asked."""

    def __init__(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = status, body, headers
        self.asked: list[tuple[str, dict[str, str], bytes]] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Scripted

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.server.asked.append((self.path, dict(self.headers), self.rfile.read(length)))
        status, body, headers = self.server.answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def scripted(status: int, body: bytes, **headers: str) -> Iterator[Scripted]:
    with Scripted(status, body, {name.replace("_", "-"): value for name, value in headers.items()}) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)


def frames(*values: object) -> bytes:
    """A stream of server-sent events; a string is sent as it is."""
    lines = (value if isinstance(value, str) else f"data: {json.dumps(value)}" for value in values)
    return "".join(f"{line}\n\n" for line in lines).encode()


def piece(text: str, *ids: int, finish: str | None = None) -> dict[str, object]:
    return {
        "id": "a1",
        "choices": [{"delta": {"content": text}, "token_ids": ids, "finish_reason": finish}],
    }


USAGE = {
    "choices": [],
    "usage": {"completion_tokens": 3},
    "tokenfleet": {"attempts": [[{"worker_id": "one"}, {"worker_id": "two"}]]},
}
STREAM = frames(
    ": sim: fetching 40 %",
    piece("Hel", 1),
    piece("lo", 2, 3),
    piece("", finish="stop"),
    USAGE,
    "data: [DONE]",
)


@pytest.mark.parametrize("written", ["{}", "http://{}", "http://{}/", "{}/v1", "http://{}/v1/"])
def test_a_base_address_may_be_written_in_several_ways(written: str) -> None:
    with scripted(200, b'{"data": [{"id": "m"}]}') as server:
        gateway = GatewayHttp(written.format(server.address), api_key="k")
        assert gateway.models() == [{"id": "m"}]
        assert gateway.base == f"http://{server.address}"
    path, headers, _ = server.asked[0]
    assert (path, headers["Authorization"]) == ("/v1/models", "Bearer k")


@pytest.mark.parametrize("written", ["ftp://x", "http://", "http://x:99999999"])
def test_what_is_no_address_is_named(written: str) -> None:
    with pytest.raises(CliError, match="--url"):
        GatewayHttp(written)


def test_a_streamed_answer_is_put_together_with_its_figures() -> None:
    shown: list[Event] = []
    with scripted(200, STREAM) as server:
        session = Session(GatewayHttp(server.address), "sim", "Be brief.", {"max_tokens": 9})
        answer = session.ask("Hi", shown.append)
    assert (answer.text, answer.finish_reason, answer.tokens, answer.answer_id) == ("Hello", "stop", 3, "a1")
    assert shown[0].loading == Loading("sim", "fetching")
    assert answer.workers == 2
    path, _, body = server.asked[0]
    asked = json.loads(body)
    assert path == "/v1/chat/completions"
    assert [each["role"] for each in asked["messages"]] == ["system", "user"]
    assert (asked["stream"], asked["max_tokens"]) == (True, 9)
    assert [turn["content"] for turn in session.turns] == ["Hi", "Hello"]


def events_of(stream: bytes, **headers: str) -> list[Event]:
    with (
        scripted(200, stream, **headers) as server,
        GatewayHttp(server.address).chat({"model": "m"}) as events,
    ):
        return list(events)


@pytest.mark.parametrize(
    ("comment", "event"),
    [
        ("a:b: queued", Event(loading=Loading("a:b", "queued"))),
        ("m: fetching 40 % (40 of 100 bytes)", Event(loading=Loading("m", "fetching", 40, 100))),
        (
            "m: fetching 40 % (40 of 100 bytes, 12 s left)",
            Event(loading=Loading("m", "fetching", 40, 100, 12.0)),
        ),
        ("m: starting engine (3 s left)", Event(loading=Loading("m", "starting engine", eta_s=3.0))),
        ("who knows", Event()),
        (
            "fallback: m cannot be had (no_worker): n answers",
            Event(fallback="m cannot be had (no_worker): n answers"),
        ),
    ],
)
def test_comments_tell_of_loads_and_fallbacks(comment: str, event: Event) -> None:
    assert events_of(f": {comment}\n\ndata: [DONE]\n\n".encode()) == [event]


def test_the_gateways_own_comments_are_understood() -> None:
    progress = common_pb2.LoadProgress(
        model="m", stage=common_pb2.LoadProgress.STAGE_FETCHING, bytes_done=4, bytes_total=9, eta_ms=3000
    )
    seen = events_of(f": {progress_text(progress)}\n\ndata: [DONE]\n\n".encode())
    assert seen == [Event(loading=Loading("m", "fetching", 4, 9, 3.0))]


def test_a_header_tells_that_another_model_answers() -> None:
    answer = Answer(model="m")
    frame = b'data: {"model": "n", "choices": [{"delta": {"content": "x"}}]}\n\ndata: [DONE]\n\n'
    for event in events_of(frame, X_Tokenfleet_Fallback="load_failed"):
        answer.add(event, 1.0)
    assert answer.model == "n"
    assert "load_failed" in answer.fallback
    assert "answered by n instead" in answer.summary()


def test_speed_is_measured_between_tokens_and_not_from_the_question() -> None:
    answer = Answer(model="m")
    answer.add(Event(text="a", tokens=1), 2.0)
    answer.add(Event(text="b", tokens=2), 2.25)
    answer.add(Event(text="c", tokens=1), 2.5)
    assert (answer.ttft_s, answer.tokens, answer.tokens_per_s) == (2.0, 4, 6.0)
    assert answer.summary() == "TTFT 2.00 s · 4 tokens · 6.0 tokens/s"
    answer.add(Event(finish_reason="length", workers=3), 2.6)
    assert answer.summary().endswith("cut at the token limit · survived 2 lost workers")


def test_one_token_has_no_speed() -> None:
    answer = Answer(model="m")
    answer.add(Event(text="a", tokens=1), 0.05)
    assert answer.tokens_per_s is None
    assert answer.summary() == "TTFT 50 ms · 1 token"
    assert answer.as_json()["tokens_per_s"] is None


def test_ctrl_c_keeps_what_was_seen_and_closes_the_connection() -> None:
    def interrupt(event: Event) -> None:
        if event.text:
            raise KeyboardInterrupt

    with scripted(200, STREAM) as server:
        session = Session(GatewayHttp(server.address), "sim")
        answer = session.ask("Hi", interrupt)
    assert (answer.text, answer.finish_reason, answer.tokens) == ("Hel", "stopped", 1)
    assert [turn["content"] for turn in session.turns] == ["Hi", "Hel"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (frames(piece("Hel", 1)), "the stream ended before the answer did"),
        (frames(piece("Hel", 1), {"error": {"message": "lost", "code": "worker_lost"}}), "lost"),
        (frames("data: {"), "the answer is not JSON"),
    ],
)
def test_a_broken_stream_is_an_error_and_the_question_can_be_asked_again(body: bytes, told: str) -> None:
    with scripted(200, body) as server:
        session = Session(GatewayHttp(server.address), "sim")
        with pytest.raises(GatewayError, match=told):
            session.ask("Hi", lambda event: None)
    assert session.turns == []


def test_a_refusal_keeps_its_words_its_code_and_its_advice() -> None:
    refusal = b'{"error": {"message": "the queue is full", "code": "queue_full"}}'
    with (
        scripted(429, refusal, Retry_After="7") as server,
        pytest.raises(GatewayError, match=r"^the queue is full \(try again in 7 s\)$") as caught,
    ):
        receive(GatewayHttp(server.address), {"model": "m"}, lambda event: None)
    assert caught.value.code == "queue_full"


def test_a_missing_key_says_where_to_give_it() -> None:
    refusal = b'{"error": {"message": "an API key is needed", "code": "unauthenticated"}}'
    with scripted(401, refusal) as server, pytest.raises(GatewayError, match="TOKENFLEET_API_KEY"):
        GatewayHttp(server.address).models()


def test_servers_that_are_no_gateway_are_told_apart() -> None:
    with scripted(404, b"<html>") as server, pytest.raises(GatewayError, match="HTTP 404 Not Found"):
        GatewayHttp(server.address).models()
    with scripted(200, b"{}") as server, pytest.raises(GatewayError, match="OpenAI-compatible"):
        GatewayHttp(server.address).models()
    with pytest.raises(GatewayError, match="nobody listens there"):
        GatewayHttp(server.address).models()


def test_what_the_caller_does_wrong_is_not_taken_for_the_network() -> None:
    def break_pipe(event: Event) -> None:
        raise BrokenPipeError("stdout")

    with scripted(200, STREAM) as server, pytest.raises(BrokenPipeError, match="stdout"):
        receive(GatewayHttp(server.address), {"model": "m"}, break_pipe)


def test_the_model_is_the_wanted_the_preferred_or_the_first() -> None:
    with scripted(200, b'{"data": [{"id": "a"}, {"id": "b"}]}') as server:
        gateway = GatewayHttp(server.address)
        assert choose_model(gateway, "") == "a"
        assert choose_model(gateway, "", "b") == "b"
        assert choose_model(gateway, "b", "a") == "b"
        assert choose_model(gateway, "", "gone") == "a"
        with pytest.raises(CliError, match="no model is called 'c'; there are: a, b"):
            choose_model(gateway, "c")


def test_a_models_words_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b]0;title\x07b\tc\nd\x9be\r") == "a]0;titleb\tc\nde"
