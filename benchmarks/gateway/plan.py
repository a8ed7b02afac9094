"""The rows of the benchmark.

Sparse rows exist because the cost per token is the cost of a message divided by the sequences that share it:
`k` sequences per worker stream, all at one pace, show how the gateway does when there is little to share.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadtest.driver.load import Load

WORKERS = 4
TTFT_MS = 5
STREAM_TOKENS = 64
SPARSE_ITL_MS = 20


@dataclass(frozen=True, slots=True)
class Row:
    """One condition: so many connections, each always with one request."""

    name: str
    concurrency: int
    itl_ms: int
    stream: bool = True
    tokens: int = STREAM_TOKENS
    prompt_chars: int = 128
    compared: bool = False  # measured on the bare server, too

    @property
    def model(self) -> str:
        return model_name(self.itl_ms)

    @property
    def stream_s(self) -> float:
        """How long one answer takes at least."""
        return (TTFT_MS + (self.tokens - 1) * self.itl_ms) / 1000

    @property
    def sequences_per_link(self) -> int:
        return self.concurrency // WORKERS

    def load(self, host: str, port: int) -> Load:
        return Load(
            host=host,
            port=port,
            model=self.model,
            concurrency=self.concurrency,
            max_tokens=self.tokens,
            stream=self.stream,
            prompt_chars=self.prompt_chars,
            stagger_s=self.stream_s,
        )


ROWS = {
    row.name: row
    for row in (
        Row("k2", 2 * WORKERS, SPARSE_ITL_MS, compared=True),
        Row("k8", 8 * WORKERS, SPARSE_ITL_MS, compared=True),
        Row("64", 64, 10, compared=True),
        Row("256", 256, 20, compared=True),  # and 64 sequences per worker stream
        Row("1000", 1000, 50, compared=True),
        Row("requests", 64, SPARSE_ITL_MS, stream=False, tokens=1, prompt_chars=512),
    )
}
QUICK_ROWS = ("64", "256", "requests")


def model_name(itl_ms: int) -> str:
    return f"sim-itl{itl_ms}"


def paces_ms() -> list[int]:
    """Every time between tokens that some row needs: each is a model of its own in the catalog."""
    return sorted({row.itl_ms for row in ROWS.values()})
