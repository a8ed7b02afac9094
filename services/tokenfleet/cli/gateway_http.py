"""A gateway's HTTP API, as the command line calls it: one base address, nothing to install.

HTTP and not the gRPC SDK, because a base address is all that a person has: what `tokenfleet up` prints, what
an ingress publishes, what every other client of the fleet was given. The gRPC port is another one, and often
not published at all. Connections are plain objects in the calling thread, so that leaving one, by Ctrl-C for
example, closes its socket; the gateway takes that for a cancel and frees what the answer held.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tokenfleet.cli.errors import CliError

CONNECT_TIMEOUT_S = 10.0
# Of silence; an answer that waits in a queue is silent, a model that loads is not.
READ_TIMEOUT_S = 600.0


class GatewayError(CliError):
    """The gateway refused, or broke off. `code` is its stable reason, "" when it gave none."""

    def __init__(self, message: str, *, code: str = "") -> None:
        self.code = code
        super().__init__(message)


@dataclass(frozen=True)
class Loading:
    """How far a model's load has come. `stage` is for people, bytes are 0 where they mean nothing."""

    model: str
    stage: str
    done: int = 0
    total: int = 0
    eta_s: float | None = None


@dataclass(frozen=True)
class Event:
    """One thing that a streamed answer brought; what it did not bring is empty."""

    text: str = ""
    tokens: int = 0
    finish_reason: str = ""
    loading: Loading | None = None
    fallback: str = ""  # that another model answers, for people
    model: str = ""  # who answers
    answer_id: str = ""
    usage: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 0  # how many worked on it, one after the other; told at the end


class GatewayHttp:
    """`base` is as people write it: http:// and /v1 may be missing. Raises CliError when it is no address."""

    def __init__(self, base: str, api_key: str = "") -> None:
        parts = urlsplit(base if "://" in base else f"http://{base}")
        try:
            port = parts.port
        except ValueError as error:
            raise CliError(f"--url: {base!r} has no valid port: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise CliError(f"--url: {base!r} is no base address: write, for example, http://127.0.0.1:8080")
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, port or (443 if self._secure else 80)
        self._prefix = re.sub(r"(/v1)?/*$", "", parts.path)
        self.base = f"{parts.scheme}://{parts.netloc}{self._prefix}"
        self._headers = {"Accept": "application/json", "User-Agent": "tokenfleet-cli"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def models(self) -> list[dict[str, Any]]:
        """The entries of /v1/models. Raises GatewayError."""
        with self._call("GET", "/v1/models") as response, self._in_words():
            answer = _decoded(response.read())
        if not isinstance(answer.get("data"), list):
            raise GatewayError(f"{self.base} answers, but not as an OpenAI-compatible server does")
        return list(answer["data"])

    @contextmanager
    def chat(self, body: Mapping[str, Any]) -> Iterator[Iterator[Event]]:
        """A streamed chat completion; leaving the context before its end cancels it. Raises GatewayError."""
        with self._call("POST", "/v1/chat/completions", {**body, "stream": True}) as response:
            yield self._events(response)

    def order(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What an admin endpoint answers. Raises GatewayError."""
        with self._call(method, path, body) as response, self._in_words():
            return _decoded(response.read())

    def load(self, body: Mapping[str, Any]) -> Iterator[Loading]:
        """Orders a load and follows it to its end. Raises GatewayError when it fails."""
        with self._call("POST", "/admin/models/load", {**body, "stream": True}) as response:
            while raw := self._line(response):
                line = raw.rstrip(b"\r\n")
                if line == b"data: [DONE]":
                    return
                if line.startswith(b"data:"):
                    yield _loading(_decoded(line[5:]))
        raise GatewayError("the gateway broke off; the load goes on", code="stream_broken")

    @contextmanager
    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        with ExitStack() as closing:
            connection = self._connection()
            closing.callback(connection.close)
            with self._in_words():
                connection.connect()
                connection.sock.settimeout(READ_TIMEOUT_S)
                payload = None if body is None else json.dumps(body).encode()
                headers = self._headers | ({"Content-Type": "application/json"} if payload else {})
                connection.request(method, self._prefix + path, payload, headers)
                # may own the socket alone, once it has begun
                response = closing.enter_context(connection.getresponse())
                if response.status != 200:
                    raise _refusal(response)
            yield response

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """What the network does wrong, for people. Not around what the caller does with an answer."""
        try:
            yield
        except (OSError, http.client.HTTPException) as error:
            raise GatewayError(f"{self.base}: {_described(error)}", code="unreachable") from error

    def _connection(self) -> http.client.HTTPConnection:
        if self._secure:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(
                self._host, self._port, timeout=CONNECT_TIMEOUT_S, context=context
            )
        return http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_TIMEOUT_S)

    def _events(self, response: http.client.HTTPResponse) -> Iterator[Event]:
        reason = response.getheader("X-Tokenfleet-Fallback")
        if reason:
            yield Event(fallback=f"the model cannot be had ({reason}): another answers")
        while raw := self._line(response):
            line = raw.rstrip(b"\r\n")
            if line.startswith(b":"):
                yield _remark(line[1:].decode(errors="replace").strip())
            elif line == b"data: [DONE]":
                return
            elif line.startswith(b"data:"):
                yield _event(_decoded(line[5:]))
        raise GatewayError("the stream ended before the answer did", code="stream_broken")

    def _line(self, response: http.client.HTTPResponse) -> bytes:
        with self._in_words():
            return response.readline()


_FALLBACK = "fallback: "
# As the gateway writes it: `model: fetching 40 % (40 of 100 bytes, 12 s left)`.
_PROGRESS = re.compile(
    r"(?P<model>.*): (?P<stage>[a-z ]+?)(?: \d+ %)?"
    r"(?: \((?:(?P<done>\d+) of (?P<total>\d+) bytes)?(?:, )?(?:(?P<eta>\d+) s left)?\))?"
)


def _remark(text: str) -> Event:
    """A comment: how far a load has come, or that another model answers."""
    if text.startswith(_FALLBACK):
        return Event(fallback=text.removeprefix(_FALLBACK))
    found = _PROGRESS.fullmatch(text)
    if found is None:
        return Event()
    eta_s = float(found["eta"]) if found["eta"] else None
    loading = Loading(
        found["model"], found["stage"], int(found["done"] or 0), int(found["total"] or 0), eta_s
    )
    return Event(loading=loading)


def _loading(step: dict[str, Any]) -> Loading:
    if "error" in step:
        raise _error(step)
    return Loading(
        model=str(step.get("model")),
        stage=str(step.get("stage")).replace("_", " "),
        done=int(step.get("bytes_done") or 0),
        total=int(step.get("bytes_total") or 0),
        eta_s=step.get("eta_s"),
    )


def _event(frame: dict[str, Any]) -> Event:
    if "error" in frame:
        raise _error(frame)
    choice = (frame.get("choices") or [{}])[0]
    attempts = (frame.get("tokenfleet") or {}).get("attempts") or [[]]
    return Event(
        text=(choice.get("delta") or {}).get("content") or "",
        tokens=len(choice.get("token_ids") or ()),
        finish_reason=choice.get("finish_reason") or "",
        answer_id=frame.get("id") or "",
        model=frame.get("model") or "",
        usage=frame.get("usage") or {},
        workers=len(attempts[0]),
    )


def _refusal(response: http.client.HTTPResponse) -> GatewayError:
    body = response.read(1 << 20)
    try:
        error = _error(_decoded(body))
    except GatewayError:
        return GatewayError(f"HTTP {response.status} {response.reason}", code=str(response.status))
    if response.status == 401:
        return GatewayError(f"{error} (give it with --api-key, or in TOKENFLEET_API_KEY)", code=error.code)
    if response.status == 403 and error.code == "permission_denied":
        return GatewayError(f"{error} (an admin key goes with --api-key)", code=error.code)
    after = response.getheader("Retry-After")
    return GatewayError(f"{error} (try again in {after} s)", code=error.code) if after else error


def _error(answer: dict[str, Any]) -> GatewayError:
    error = answer.get("error")
    if not isinstance(error, dict):
        raise GatewayError("an error without OpenAI's error object")
    return GatewayError(str(error.get("message") or "no message"), code=str(error.get("code") or ""))


def _decoded(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise GatewayError("the answer is not JSON: is this the gateway's HTTP address?") from error
    if not isinstance(value, dict):
        raise GatewayError("the answer is not a JSON object: is this the gateway's HTTP address?")
    return value


def _described(error: Exception) -> str:
    match error:
        case TimeoutError():
            return "no answer in time"
        case socket.gaierror():
            return f"no such host ({error.strerror})"
        case ConnectionRefusedError():
            return "nobody listens there: does the fleet run?"
        case http.client.IncompleteRead() | http.client.RemoteDisconnected() | ConnectionError():
            return "the connection broke"
        case http.client.HTTPException():
            return "what answers there does not speak HTTP"
        case _:
            return str(error)
