"""What one client connection may cost, and how a client is told that it asked for more.

Each limit is checked where the thing it bounds arrives: a connection, a header, a piece of a body. None of
them costs a task or, for a request that arrives whole, a timer. A refusal is a typed error in OpenAI's shape
like any other; the connection is closed behind it, because what follows on it can no longer be understood or
is not wanted.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenfleet.gateway.http.errors import HttpError
from tokenfleet.gateway.settings import GatewaySettings


@dataclass(slots=True, frozen=True)
class Limits:
    """Durations in seconds, sizes in bytes."""

    connections: int = 10_000
    header_bytes: int = 32 * 1024
    headers: int = 100
    url_bytes: int = 8 * 1024
    body_bytes: int = 8 * 1024 * 1024
    body_values: int = 200_000
    body_strings: int = 60_000
    pipelined: int = 16
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    write_timeout_s: float = 60.0

    @property
    def wire_bytes(self) -> int:
        """Of one message as sent: chunked encoding may double it, and no more."""
        return self.header_bytes + 2 * self.body_bytes

    @classmethod
    def of(cls, settings: GatewaySettings) -> Limits:
        return cls(
            connections=settings.max_connections,
            header_bytes=settings.max_header_bytes,
            headers=settings.max_headers,
            url_bytes=settings.max_url_bytes,
            body_bytes=settings.max_body_bytes,
            body_values=settings.max_body_values,
            body_strings=settings.max_body_strings,
            pipelined=settings.max_pipelined,
            header_timeout_s=settings.header_timeout_s,
            body_timeout_s=settings.body_timeout_s,
            write_timeout_s=settings.write_timeout_s,
        )


def malformed(detail: str) -> HttpError:
    return HttpError(400, "bad_request", f"this is no valid HTTP/1.1 request: {detail}")


def head_too_large(limits: Limits, url_bytes: int) -> HttpError:
    if url_bytes > limits.url_bytes:
        message = f"the URL is longer than {limits.url_bytes} bytes: send a shorter one"
        return HttpError(414, "url_too_long", message)
    return HttpError(
        431,
        "headers_too_large",
        f"the headers are more than {limits.headers} or larger than {limits.header_bytes} bytes: send less",
    )


def body_too_large(limits: Limits) -> HttpError:
    return HttpError(
        413,
        "body_too_large",
        f"the body is larger than {limits.body_bytes} bytes: send less (--max-body-bytes)",
        field="body",
    )


def encoded_body(encoding: bytes) -> HttpError:
    return HttpError(
        415,
        "unsupported_encoding",
        f"Content-Encoding {encoding[:64].decode('latin-1')!r} is not taken: send the body uncompressed",
        field="body",
    )


def too_slow(part: str, seconds: float) -> HttpError:
    return HttpError(
        408, "request_timeout", f"the request's {part} did not arrive within {seconds:g} s: send it faster"
    )


def too_many_connections(limits: Limits) -> HttpError:
    return HttpError(
        503,
        "too_many_connections",
        f"this gateway has all of its {limits.connections} connections: try again, or use fewer of them",
        retry_after_s=1.0,
    )
