"""Just enough of HTTP/1.1 to read the answers of one keep-alive connection, split wherever it may be."""

from __future__ import annotations

from collections.abc import Callable

HEAD_LIMIT_BYTES = 64 * 1024


class ProtocolError(Exception):
    """The peer sent what is no HTTP/1.1 answer, or one of a kind that no fleet sends."""


class ResponseReader:
    """Reads one response; its body goes to `sink` piece by piece, without chunk framing.

    `feed` takes the bytes as they come: an attribute, so that what reads the head is gone once it is read.
    """

    __slots__ = ("_chunked", "_left", "_pending", "_sink", "complete", "feed", "headers", "status")

    def __init__(self, sink: Callable[[bytes], None]) -> None:
        self._sink = sink
        self._pending = b""
        self._left = 0
        self._chunked = False
        self.feed: Callable[[bytes], None] = self._read_head
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.complete = False

    @property
    def between_chunks(self) -> bool:
        """Whether the next bytes, if any, begin a chunk."""
        return self._chunked and not self._pending and not self.complete

    def _read_head(self, data: bytes) -> None:
        data = self._pending + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > HEAD_LIMIT_BYTES:
                raise ProtocolError(f"response head over {HEAD_LIMIT_BYTES} bytes")
            self._pending = data
            return
        self._pending = b""
        status_line, *fields = data[:end].split(b"\r\n")
        parts = status_line.split(b" ", 2)
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
            raise ProtocolError(f"no HTTP/1.1 status line: {status_line[:80]!r}")
        self.status = int(parts[1])
        for field in fields:
            name, _, value = field.partition(b":")
            self.headers[name.strip().lower()] = value.strip()
        self._begin_body(data[end + 4 :])

    def _begin_body(self, rest: bytes) -> None:
        if self.headers.get(b"transfer-encoding", b"").lower() == b"chunked":
            self._chunked = True
            self.feed = self._read_chunks
        elif b"content-length" in self.headers:
            self._left = int(self.headers[b"content-length"])
            self.feed = self._read_counted
        else:
            raise ProtocolError("a response with neither content-length nor chunks cannot be kept alive")
        self.feed(rest)

    def _read_counted(self, data: bytes) -> None:
        if len(data) > self._left:
            _refuse(data[self._left :])
        self._left -= len(data)
        if data:
            self._sink(data)
        if not self._left:
            self._end(b"")

    def _read_chunks(self, data: bytes) -> None:
        if self._pending:
            data = self._pending + data
            self._pending = b""
        position, available = 0, len(data)
        while position < available:
            line_end = data.find(b"\r\n", position)
            if line_end < 0:
                break
            try:
                size = int(data[position:line_end], 16)
            except ValueError as error:
                raise ProtocolError(f"no chunk size: {data[position : position + 40]!r}") from error
            begin = line_end + 2
            end = begin + size
            if end + 2 > available:
                break
            if data[end : end + 2] != b"\r\n":
                raise ProtocolError("a chunk is longer than its size says")
            if not size:
                self._end(data[end + 2 :])
                return
            self._sink(data[begin:end])
            position = end + 2
        if position < available:
            self._pending = data[position:] if position else data

    def _end(self, surplus: bytes) -> None:
        self.complete = True
        self.feed = _refuse
        if surplus:
            self.feed(surplus)


def _refuse(data: bytes) -> None:
    raise ProtocolError(f"{len(data)} bytes behind the end of the response")
