"""What load to make: the one description that the command line, the parent process and the driver share."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass

from loadtest.driver.sse import CHAT_MARKER, COMPLETION_MARKER

_SYLLABLES = "ba ce di fo gu ha je ki lo mu na pe ri so tu va we xi yo zu".split()
_TAILS = 64


@dataclass(frozen=True, slots=True)
class Load:
    """Closed loop: `concurrency` connections, each with one request at a time. Open loop: `rate` a second."""

    host: str
    port: int
    model: str
    concurrency: int = 64
    rate: float = 0.0  # requests a second, Poisson; 0: closed loop
    max_tokens: int = 64
    stream: bool = True
    chat: bool = True
    temperature: float | None = None  # None: left to the server
    untold_finish: bool = False  # a server may say why it ended beside its last text, which is not parsed
    prompt_chars: int = 128
    stagger_s: float = 0.0  # the first requests start spread over this time
    every_gap: bool = False  # keep the time before each token, be it without text, not only the worst
    keep_alive: bool = True  # False: a connection a request, for servers that close without saying so
    silence_s: float = 30.0  # a request without a byte for so long has failed
    seed: int = 1

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Load:
        return cls(**json.loads(text))

    @property
    def marker(self) -> bytes:
        return CHAT_MARKER if self.chat else COMPLETION_MARKER


class RequestFactory:
    """Requests of one length, no two alike: equal prompts would be answered out of the caches.

    The number comes first in the prompt, so that no block of it is shared either.
    """

    def __init__(self, load: Load) -> None:
        draw = random.Random(load.seed)
        self._number = draw.randrange(10**7)
        self._parts = [self._split(load, _words(draw, load.prompt_chars - 9)) for _ in range(_TAILS)]

    def next(self) -> bytes:
        self._number += 1
        head, tail = self._parts[self._number % _TAILS]
        return b"%b%08d%b" % (head, self._number % 10**8, tail)

    @staticmethod
    def _split(load: Load, words: str) -> tuple[bytes, bytes]:
        number = "@@@@@@@@"
        prompt = f"{number} {words}"
        body = json.dumps(_body(load, prompt), separators=(",", ":")).encode()
        path = "/v1/chat/completions" if load.chat else "/v1/completions"
        request = (
            f"POST {path} HTTP/1.1\r\nhost: {load.host}:{load.port}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode() + body
        head, tail = request.split(number.encode())
        return head, tail


def _body(load: Load, prompt: str) -> dict[str, object]:
    body: dict[str, object] = {"model": load.model, "max_tokens": load.max_tokens, "ignore_eos": True}
    if load.chat:
        body["messages"] = [{"role": "user", "content": prompt}]
    else:
        body["prompt"] = prompt
    if load.temperature is not None:
        body["temperature"] = load.temperature
    if load.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if load.every_gap:
        body["return_token_ids"] = True  # so that a token without text has a frame as well
    return body


def _words(draw: random.Random, characters: int) -> str:
    if characters < 1:
        raise ValueError("prompt_chars must be at least 10: the first nine number the prompt")
    words: list[str] = []
    length = 0
    while length <= characters:
        words.append("".join(draw.choices(_SYLLABLES, k=draw.randint(1, 3))))
        length += len(words[-1]) + 1
    return " ".join(words)[:characters]
