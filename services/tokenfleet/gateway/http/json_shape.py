"""What a JSON body is made of, found out before it is parsed.

Parsing happens on the event loop that all streams share, and cannot be moved off it: the parser holds the
interpreter wherever it runs. What it costs depends little on a body's size and much on its pieces, about
0.1 µs for a number and up to 1 µs for a string or a key. So a body may be one long text, but its pieces are
bounded; counting them takes a fraction of what making them would.
"""

from __future__ import annotations

from tokenfleet.gateway.http.errors import invalid
from tokenfleet.gateway.http.limits import Limits

UNCOUNTED_BYTES = 64 * 1024


def check_shape(body: bytes, limits: Limits) -> None:
    """Raises FleetError (400) when the body has too many strings or values."""
    if len(body) <= UNCOUNTED_BYTES:
        return
    # The quotes inside a text stand behind a backslash. An opening quote never does, a closing one may seem
    # to ("\\\\"), so this is between once and twice the number of strings.
    quotes = body.count(b'"')
    if quotes > 2 * limits.body_strings and quotes - body.count(b'\\"') > 2 * limits.body_strings:
        raise invalid(
            "",
            f"the body has more than {limits.body_strings} strings and keys: send fewer or longer ones "
            "(the gateway's --max-body-strings)",
        )
    values = _values(body)
    if values > limits.body_values:
        values = _values(_without_strings(body))
    if values > limits.body_values:
        raise invalid(
            "",
            f"the body has {values} values and {limits.body_values} are taken: send text instead "
            "(the gateway's --max-body-values)",
        )


def _values(body: bytes) -> int:
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def _without_strings(body: bytes) -> bytes:
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b"".join(unescaped.split(b'"')[::2])
