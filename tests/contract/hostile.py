"""What Hypothesis makes hostile clients say: from noise to requests with one thing wrong."""

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.contract.raw_http import request
from tests.contract.test_gateway_http import CHAT, COMPLETIONS, chat

SCHEMA_FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
# Valid, and with as many different fields as there are.
BODIES: dict[str, list[dict[str, Any]]] = {
    CHAT: [
        chat(),
        chat(stream=True, stream_options={"include_usage": True}, n=2, stop=["x"], seed=1),
        chat(logprobs=True, top_logprobs=2, return_token_ids=True, response_format=SCHEMA_FORMAT),
    ],
    COMPLETIONS: [
        {"model": "letters", "prompt": "hello", "max_tokens": 5},
        {"model": "letters", "prompt": [[1, 2], [3]], "stream": True, "logprobs": 1},
    ],
    "/tokenize": [
        {"model": "letters", "prompt": "hello"},
        {"model": "letters", "messages": [{"role": "user", "content": "hello"}]},
    ],
    "/detokenize": [{"model": "letters", "tokens": [104, 105]}],
}

JSON: SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 2**31, 2**63, 2**64, 10**400, 1e308, 5e-324, -0.0])
    | st.floats()
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)

PIECES = st.lists(st.binary(max_size=400), max_size=8)


@st.composite
def mutated_json(draw: st.DrawFn, bodies: Sequence[Any]) -> Any:
    """A valid body with up to three of its parts replaced, removed or added to."""
    body = json.loads(json.dumps(draw(st.sampled_from(bodies))))
    for _ in range(draw(st.integers(1, 3))):
        place = body
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and draw(st.booleans()):
                place = place[key]
                continue
            if draw(st.integers(0, 3)):
                place[key] = draw(JSON)
            else:
                del place[key]
            break
        if isinstance(place, dict) and draw(st.booleans()):
            place[draw(st.text(max_size=10))] = draw(JSON)
    return body


@st.composite
def mutated_bytes(draw: st.DrawFn, originals: Sequence[bytes]) -> bytes:
    """A valid message with bytes changed, inserted, removed or repeated, and perhaps cut off."""
    raw = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(raw)))
        end = min(len(raw), start + draw(st.integers(0, 20)))
        raw[start:end] = draw(st.binary(max_size=12) | st.just(bytes(raw[start:end] * 3)))
    cut = draw(st.none() | st.integers(0, len(raw)))
    return bytes(raw[:cut])


@st.composite
def in_pieces(draw: st.DrawFn, whole: SearchStrategy[bytes]) -> list[bytes]:
    raw = draw(whole)
    cuts = sorted(draw(st.lists(st.integers(0, len(raw)), max_size=4)))
    return [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]


REQUESTS = [
    *(request(path, body) for path, bodies in BODIES.items() for body in bodies),
    request("/v1/models"),
    request("/v1/models/letters"),
    request("/health/ready") * 3,
    request(CHAT, chat(), Expect="100-continue", X_Request_Timeout="30", Origin="http://localhost"),
    request("/v1/models").replace(b"GET", b"OPTIONS"),
    f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (b'{"model":"letters",', b'"messages":[]}'))
    + b"0\r\nTrailer: x\r\n\r\n",
]

KNOWN_NAMES = """
    accept authorization connection content-encoding content-length content-type cookie expect host origin
    sec-websocket-key te trailer transfer-encoding upgrade via x-forwarded-for x-request-id traceparent
"""
NAMES = st.sampled_from(KNOWN_NAMES.split()) | st.from_regex(
    r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,30}", fullmatch=True
)
VALUES = st.binary(max_size=60).map(
    lambda raw: bytes(b for b in raw if b not in b"\r\n\0")
) | st.sampled_from(
    [
        b"chunked",
        b"close",
        b"keep-alive, Upgrade",
        b"websocket",
        b"h2c",
        b"gzip",
        b"0",
        b"-1",
        b"9" * 30,
        b"*",
    ]
)
HEADERS = st.lists(st.tuples(NAMES.map(str.encode), VALUES), max_size=12)


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """WebSocket frames, of which any bit may be wrong."""
    parts = []
    for _ in range(draw(st.integers(1, 8))):
        first = draw(st.sampled_from([0x81, 0x01, 0x00, 0x80, 0x82, 0x88, 0x89, 0x8A]) | st.integers(0, 255))
        payload = draw(st.binary(max_size=140) | JSON.map(lambda value: json.dumps(value).encode()[:2000]))
        masked = draw(st.sampled_from([0x80, 0x80, 0x80, 0]))
        size = draw(st.just(len(payload)) | st.integers(0, 2**64 - 1))
        parts.append(bytes([first]) + _length(masked, size) + (b"\0\0\0\0" if masked else b"") + payload)
    return b"".join(parts)


def _length(masked: int, size: int) -> bytes:
    if size < 126:
        return bytes([masked | size])
    if size < 65536:
        return bytes([masked | 126]) + size.to_bytes(2, "big")
    return bytes([masked | 127]) + size.to_bytes(8, "big")
