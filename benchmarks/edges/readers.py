"""One slow reader: a connected socket with a small receive buffer, and what came out of it in the end."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import httptools
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

HANDSHAKE_S = 20.0


class End(StrEnum):
    """How a reader's stream ended, as far as the reader can tell."""

    COMPLETE = "complete"
    TYPED = "told why"
    CUT = "cut off"


@dataclass(slots=True)
class Heard:
    """What a reader got in the end."""

    end: End = End.CUT
    frames: int = 0
    tokens: int = 0  # of complete answers
    code: str = ""
    text: str = ""


class Reader(Protocol):
    """Bytes in; `heard` once nothing more will come."""

    done: bool

    def feed(self, data: bytes) -> None: ...

    def heard(self) -> Heard: ...


def connect(host: str, port: int, receive_buffer_bytes: int) -> socket.socket:
    """A socket that takes little before the sender has to wait."""
    endpoint = socket.socket()
    endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    endpoint.settimeout(HANDSHAKE_S)
    endpoint.connect((host, port))
    return endpoint


class SseReader:
    """A streamed chat completion."""

    def __init__(self, endpoint: socket.socket, body: dict[str, Any]) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self.done = False
        payload = json.dumps({"stream": True, "stream_options": {"include_usage": True}, **body}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: fleet\r\nContent-Length: {len(payload)}\r\n\r\n"
        endpoint.sendall(head.encode() + payload)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self.done = True

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def heard(self) -> Heard:
        heard = Heard()
        for line in b"".join(self._body).split(b"\n")[:-1]:  # the last may be half a line
            if line == b"data: [DONE]":
                heard.end = End.COMPLETE
            elif line.startswith(b"data: "):
                self._take(heard, json.loads(line[6:]))
        return heard

    @staticmethod
    def _take(heard: Heard, event: dict[str, Any]) -> None:
        if error := event.get("error"):
            heard.end, heard.code = End.TYPED, error["code"]
        for choice in event.get("choices", ()):
            text = choice["delta"].get("content") or ""
            heard.frames += bool(text)
            heard.text += text
        if usage := event.get("usage"):
            heard.tokens = usage["completion_tokens"]


class SocketReader:
    """A chat over a WebSocket."""

    def __init__(self, endpoint: socket.socket, body: dict[str, Any], url: str) -> None:
        self._protocol = ClientProtocol(parse_uri(url))
        self._messages: list[dict[str, Any]] = []
        self.done = False
        self._protocol.send_request(self._protocol.connect())
        self._send(endpoint.sendall)
        while not self._take_events():
            self._protocol.receive_data(endpoint.recv(4096))
        self._protocol.send_text(json.dumps(body).encode())
        self._send(endpoint.sendall)

    def feed(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        self._take_events()

    def heard(self) -> Heard:
        heard = Heard()
        for message in self._messages:
            if message["type"] == "delta":
                heard.frames += bool(message["text"])
                heard.text += message["text"]
            elif message["type"] == "error":
                heard.end, heard.code = End.TYPED, message["error"]["code"]
            elif usage := message.get("usage"):
                heard.end, heard.tokens = End.COMPLETE, usage["completion_tokens"]
        return heard

    def _send(self, send: Callable[[bytes], None]) -> None:
        for data in self._protocol.data_to_send():
            if data:
                send(data)

    def _take_events(self) -> bool:
        """Whether the handshake is over."""
        opened = False
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                opened = True
            elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                self._messages.append(json.loads(bytes(event.data)))
                self.done = self.done or self._messages[-1]["type"] in ("finish", "error")
        return opened
