"""What `/openapi.json` says in words."""

from __future__ import annotations


def _flowing(text: str) -> str:
    """Paragraphs as one line each."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


API = _flowing(
    """
    OpenAI's API for the models of a tokenfleet fleet, and a few things around it.

    Errors are OpenAI's: an HTTP status and `{"error": {"message", "type", "param", "code"}}`. `code` is
    stable and for programs. Parameters that are not known are refused by name, so that a misspelt one
    cannot go unnoticed. Bodies are JSON whatever `Content-Type` says, are sent uncompressed, and have the
    size that the gateway's settings allow (8 MiB unless set otherwise). A method that a path does not take
    is a 405 with `Allow`, a path that is not described here a 404. Browsers may read the answers from pages
    that the gateway allows. The same is served over gRPC by `tokenfleet.v1.Inference`.
    """
)

GENERATION = _flowing(
    """
    With `stream` true the answer is a stream of server-sent events, otherwise one JSON object. A request
    that closes its connection is cancelled. `n` goes as far as the gateway's `--max-choices`; its answers
    get seeds of their own, derived from `seed` where one is given. The simulated engine does not sample:
    its answers to one prompt are all alike. An engine that lacks `logprobs`, `response_format` or
    `min_tokens` is not asked for them; where none has them the request is a 400 with the code
    `unsupported`.

    A model that nobody holds is loaded, and the request waits for it until its deadline. Where it cannot be
    had, the model that the catalog names as its `fallback` answers: `model` in the answer is who did, the
    header `X-Tokenfleet-Fallback` says why (where it is known before the headers leave, after about two
    seconds), and so does `tokenfleet.fallback`. A request with `X-Tokenfleet-Fallback: never` fails instead.
    """
)

STREAM = _flowing(
    """
    Server-sent events. Each `data:` line is a JSON object as `x-event` describes it; the last one is
    `[DONE]`. A stream that cannot be completed ends with an `error` object instead, without `[DONE]`. While
    a model is being loaded, comments (lines that begin with a colon) tell how far it is; another comment
    tells when a fallback answers.
    """
)

TOKENS = "Send either `prompt` or `messages`; a conversation is laid out by the model's chat template."

SOCKET = _flowing(
    """
    A WebSocket on which any number of requests run side by side, up to the gateway's `--max-socket-
    requests`, each told apart by its `request_id`. Messages are JSON objects in text messages;
    `x-websocket` describes those of the client and those of the gateway. A request is the body of a chat
    completion, or with `prompt` that of a completion; it ends with the `finish` message that has `usage`,
    or with an `error`. `{"type": "cancel", "request_id": …}` ends it early, and closing the socket ends
    all. Compression is not offered. Where the gateway asks for keys, a page, which cannot set headers,
    offers the subprotocols `tokenfleet` and `tokenfleet-key.KEY`; without a good key its socket is closed
    with 3000, and the handshake of any other client is refused with 401.
    """
)

ADMIN = _flowing(
    """
    For operators. With API keys it takes one whose line in the keys file has `"admin": true`; without, it is
    served to the gateway's own machine only.
    """
)

REFUSALS = {
    400: "The request cannot be served as it is: the message says what to change.",
    401: "No API key, or one that is not known (where the gateway asks for keys).",
    403: "This key, or this web page, may not do that.",
    404: "There is no such model, or not where it was said to be.",
    408: "The rest of the request did not arrive in time.",
    409: "Sequences run on it: wait for them, or ask with `force`.",
    413: "The body is too large.",
    414: "The URL is too long.",
    415: "The body is compressed, which is not taken.",
    426: "This path serves a WebSocket and nothing else.",
    429: "Too much at once: over quota, or the queue is full.",
    431: "Too many headers, or too large ones.",
    500: "A fault of the gateway's; its log has the details.",
    503: "Nobody can serve this now: no worker, a failed load, too many connections, a gateway that stops.",
    504: "The request's time was over before its answer was complete.",
}
