"""The request headers that mean something here, and what they mean."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import urlsplit

from tokenfleet.gateway.http.errors import invalid
from tokenfleet.gateway.urgency import STANDARD, Urgency, objective_s, priority_named

FIELDS_KEY = "tokenfleet.fields"
CALLER_KEY = "tokenfleet.caller"

AUTHORIZATION = b"authorization"
CONTENT_ENCODING = b"content-encoding"
CONTENT_LENGTH = b"content-length"
EXPECT = b"expect"
ORIGIN = b"origin"
REQUEST_ID = b"x-request-id"
REQUEST_TIMEOUT = b"x-request-timeout"
# In a request: whether another model may answer. In a response: that one did, and why.
FALLBACK = b"x-tokenfleet-fallback"
REQUEST_PRIORITY = b"x-request-priority"
TTFT_OBJECTIVE = b"x-ttft-objective"
ITL_OBJECTIVE = b"x-itl-objective"
_URGENCY = frozenset((REQUEST_PRIORITY, TTFT_OBJECTIVE, ITL_OBJECTIVE))

MAX_REQUEST_ID_CHARS = 128
MAX_AGE_S = 600
ALLOWED_HEADERS = b", ".join(
    (AUTHORIZATION, b"content-type", REQUEST_ID, REQUEST_TIMEOUT, FALLBACK, *sorted(_URGENCY))
)

CLOSE = (b"connection", b"close")

Headers = list[tuple[bytes, bytes]]
Fields = Mapping[bytes, bytes]  # headers by name, in lower case


def request_id(fields: Fields, prefix: str) -> str:
    """The client's X-Request-Id where it is printable and short, otherwise a new one."""
    given = fields.get(REQUEST_ID)
    if given is not None and 0 < len(given) <= MAX_REQUEST_ID_CHARS and given.isascii():
        text = given.decode("ascii")
        if text.isprintable():
            return text
    return f"{prefix}-{random.getrandbits(128):032x}"


def lines(headers: Headers) -> Iterable[bytes]:
    return [b"%b: %b\r\n" % header for header in headers]


def request_timeout_s(fields: Fields, maximum: float) -> float:
    """The client's X-Request-Timeout, which can only lower the maximum. Raises FleetError when it is none."""
    given = fields.get(REQUEST_TIMEOUT)
    if given is None:
        return maximum
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise invalid(
            "X-Request-Timeout",
            f"X-Request-Timeout: {given[:32].decode('latin-1')!r} is no number of seconds above 0",
        )
    return min(seconds, maximum)


def fallback_allowed(fields: Fields) -> bool:
    """By the client's X-Tokenfleet-Fallback. Raises FleetError when that says neither."""
    given = fields.get(FALLBACK)
    if given is None:
        return True
    given = given.lower()
    if given not in (b"allow", b"never"):
        raise invalid(
            "X-Tokenfleet-Fallback",
            f"X-Tokenfleet-Fallback: {given[:32].decode('latin-1')!r} is neither allow nor never",
        )
    return given == b"allow"


def urgency(fields: Fields) -> Urgency:
    """What X-Request-Priority, X-TTFT-Objective and X-ITL-Objective say. Raises FleetError."""
    if _URGENCY.isdisjoint(fields):
        return STANDARD
    name = fields.get(REQUEST_PRIORITY)
    return Urgency(
        priority_named(None if name is None else name.decode("latin-1").lower(), "X-Request-Priority"),
        _objective_s(fields, TTFT_OBJECTIVE, "X-TTFT-Objective"),
        _objective_s(fields, ITL_OBJECTIVE, "X-ITL-Objective"),
    )


def _objective_s(fields: Fields, name: bytes, field: str) -> float:
    given = fields.get(name)
    if given is None:
        return 0.0
    try:
        return objective_s(float(given), field)
    except ValueError:
        return objective_s(given.decode("latin-1"), field)


class Origins:
    """Which web pages a browser may let read the answers.

    Anybody's page could otherwise use a fleet that its visitor can reach, so by default only pages of the
    same machine may. Clients that are no browsers send no Origin and are not concerned.
    """

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self._allowed = frozenset(allowed)
        self._all = "*" in self._allowed

    def allow(self, origin: bytes) -> bool:
        if self._all:
            return True
        text = origin.decode("latin-1")
        return text in self._allowed or _host(text) in self._allowed

    def headers(self, fields: Fields) -> Headers:
        """What lets the page read the response; nothing for other clients."""
        origin = fields.get(ORIGIN)
        if origin is None or not self.allow(origin):
            return []
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", b"x-request-id, retry-after, x-tokenfleet-fallback"),
            (b"vary", b"origin"),
        ]

    def preflight(self, fields: Fields) -> Headers:
        """The answer to a browser that asks before it sends; nothing when the page may not."""
        headers = self.headers(fields)
        if not headers:
            return []
        return [
            *headers,
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-allow-headers", ALLOWED_HEADERS),
            (b"access-control-max-age", b"%d" % MAX_AGE_S),
        ]


def _host(origin: str) -> str:
    try:
        host = urlsplit(origin).hostname or ""
    except ValueError:
        return ""
    return f"[{host}]" if ":" in host else host
