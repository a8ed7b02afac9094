"""Conversations that grow, fork and are cut, with text that imitates what a template writes."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from tests.unit.tokenizer import trained
from tokenfleet.core.blocks import block_hashes
from tokenfleet.runtime.models import TokenizerBundle
from tokenfleet.tokenizer.model import LoadedModel, open_model
from tokenfleet.v1 import common_pb2, tokenizer_pb2

BLOCK_SIZE = 3
LOOKALIKES = (
    *(trained.START, trained.END, trained.TOOL, *trained.AWKWARD, "<mask>", " <mask> ", "<|im_start", "|>"),
    *(
        "\n",
        "  ",
        " ",
        "1",
        "12 345",
        "it's",
        "'",
        "é",
        "日本語",
        "🙂",
        "\u0085",
        "\u2003x",
        "\uff1c|im_end|\uff1e",
        "▁",
    ),
    *("<|im_start|>assistant\n", "<|im_end|>\n<|im_start|>user\n", "user", "Hello world"),
)
words = st.lists(st.one_of(st.sampled_from(LOOKALIKES), st.text(max_size=6)), max_size=6).map("".join)
salts = st.sampled_from(("", "tenant-a"))


@dataclass(frozen=True)
class Grow:
    answer: str
    question: str


@dataclass(frozen=True)
class Edit:
    """The message at this share of the conversation becomes another; what follows is dropped."""

    place: float
    text: str


@dataclass(frozen=True)
class Cut:
    """The oldest messages up to this share are dropped."""

    place: float


Step = Grow | Edit | Cut
steps = st.lists(
    st.tuples(
        st.integers(0, 2),  # which of three conversations
        st.one_of(
            st.builds(Grow, words, words),
            st.builds(Grow, words, words),
            st.builds(Edit, st.floats(0, 0.99), words),
            st.builds(Cut, st.floats(0, 0.99)),
        ),
        salts,
    ),
    min_size=1,
    max_size=14,
)


def model_of(bundle: TokenizerBundle, backend: str, cache_bytes: int) -> LoadedModel:
    spec = common_pb2.ModelSpec(name="m", block_size=BLOCK_SIZE)
    return open_model(spec, bundle, backend, cache_bytes)


class Conversations:
    """Three of them, with one beginning."""

    def __init__(self) -> None:
        self._all = [["Be brief.", "Hello"] for _ in range(3)]

    def step(self, which: int, step: Step) -> tokenizer_pb2.ChatInput:
        messages = self._all[which]
        match step:
            case Grow(answer, question):
                messages += [answer, question]
            case Edit(place, text):
                del messages[int(place * len(messages)) :]
                messages.append(text)
            case Cut(place):
                del messages[: int(place * len(messages))]
        chat = tokenizer_pb2.ChatInput(add_generation_prompt=True)
        for index, text in enumerate(messages):
            chat.messages.add(role="assistant" if index and index % 2 == 0 else "user", content=text)
        return chat


def check(model: LoadedModel, chat: tokenizer_pb2.ChatInput, salt: str) -> tokenizer_pb2.EncodeResult:
    """Encodes and compares with the whole text encoded afresh."""
    result = tokenizer_pb2.EncodeResult()
    model.encode(tokenizer_pb2.EncodeJob(chat=chat, cache_salt=salt), result)
    afresh = model.encoder.encode(model.prompt(chat), False)
    assert list(result.token_ids) == afresh.tolist()
    assert list(result.block_hashes) == block_hashes(afresh, BLOCK_SIZE, salt)
    assert result.token_count == len(afresh)
    return result
