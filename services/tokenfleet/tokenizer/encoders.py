"""The libraries that turn text into ids, behind one small interface.

`tokenizers` is the reference. `fastokens` reads the same file and takes about a tenth of the CPU time (11 µs
against 120 for a prompt of 512 characters); it is used where it is installed and agrees with the reference on
a check of what tokenizers commonly get wrong. Both release the interpreter while they encode.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import orjson

from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.models import TokenizerBundle
from tokenfleet.runtime.models.bundle import load_failed
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.tokenizer.pre_tokenizers import with_quick_split
from tokenfleet.v1 import common_pb2

log = get_logger(__name__)

# One encoding thread a process is the unit of scaling; the libraries' own pools would fight with it.
os.environ.setdefault("RAYON_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

CHECKED_TEXTS = (
    "",
    " ",
    "Hello world, it's DON'T we'll\n\n\n  indented\ttext   ",
    "def f(x):\r\n    return x**2  # 3.14159 1234567 ½ ² ⅷ ٠١٢\n",
    "naïve café e\u0301 日本語のテキスト。中文\uff0c測試 한국어 हिन्दी العربية",
    "👩‍👩‍👧‍👦🏳️‍🌈🙂 \U0001d518\U0001d52b\U0001d526\u200b\ufeff\u00a0\u3000\x00\x7f�",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!!!!!!!!!!======== ĠĊ ▁x <0x0A>",
)


class Encoder(Protocol):
    """One model's tokenizer."""

    name: str
    vocabulary_size: int
    # CPU time for the same text in units of the fastest encoder's
    relative_cost: int

    def encode(self, text: str, add_special_tokens: bool) -> array[int]:
        """The ids as unsigned 32-bit numbers."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str: ...


class ReferenceEncoder:
    """`tokenizers`"""

    name = "tokenizers"
    relative_cost = 10

    def __init__(self, content: str) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(content)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocabulary_size = self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool) -> array[int]:
        # `encode` would keep the interpreter locked
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return array("I", encoding.ids)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))


class FastEncoder:
    """`fastokens`"""

    name = "fastokens"
    relative_cost = 1

    def __init__(self, content: str) -> None:
        from fastokens import Tokenizer

        self._content = content
        quick = orjson.dumps(with_quick_split(orjson.loads(content))).decode()
        self._tokenizer: Any = Tokenizer.from_json_str(quick)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocabulary_size: int = self._tokenizer.vocab_size

    def encode(self, text: str, add_special_tokens: bool) -> array[int]:
        try:
            packed, _ = self._tokenizer.encode_batch_flat([text], add_special_tokens)
        except ValueError:
            # a byte that the vocabulary lacks: the reference knows what becomes of it
            return self._reference.encode(text, add_special_tokens)
        return array("I", packed)

    @cached_property
    def _reference(self) -> ReferenceEncoder:
        return ReferenceEncoder(self._content)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens))


def open_encoder(bundle: TokenizerBundle, backend: str) -> Encoder:
    """The encoder that `backend` names; `auto` takes the faster one that is right. Raises FleetError."""
    try:
        content = bundle.tokenizer_json.read_text(encoding="utf-8")
        if backend == "tokenizers":
            return ReferenceEncoder(content)
        if backend == "fastokens":
            return FastEncoder(content)
    except ImportError as error:
        raise FleetError(
            common_pb2.REASON_LOAD_FAILED, f"--backend {backend}: {error}; install it or choose auto"
        ) from error
    except Exception as error:  # both libraries raise bare exceptions
        raise load_failed(f"{bundle.tokenizer_json} is no usable tokenizer: {error}") from error
    return _faster_if_right(content, bundle)


def _faster_if_right(content: str, bundle: TokenizerBundle) -> Encoder:
    try:
        reference = ReferenceEncoder(content)
    except Exception as error:
        raise load_failed(f"{bundle.tokenizer_json} is no usable tokenizer: {error}") from error
    try:
        fast = FastEncoder(content)
        differing = first_difference(reference, fast, bundle)
    except Exception as error:  # it may not know this kind of tokenizer
        log.info("fastokens not used", tokenizer=str(bundle.tokenizer_json), error=str(error))
        return reference
    if differing is not None:
        log.warning("fastokens not used: it differs", tokenizer=str(bundle.tokenizer_json), text=differing)
        return reference
    return fast


def first_difference(one: Encoder, other: Encoder, bundle: TokenizerBundle) -> str | None:
    """The first text of the check on which two encoders disagree, or None."""
    marks = [token for token in (bundle.bos_token, bundle.eos_token) if token]
    conversation = "".join(f"{mark}user\n text {mark} {mark}{mark}\n" for mark in marks)
    for text in (*CHECKED_TEXTS, conversation):
        for add_special_tokens in (False, True):
            ids = one.encode(text, add_special_tokens)
            if ids != other.encode(text, add_special_tokens):
                return text
            for skip in (False, True):
                if one.decode(ids, skip) != other.decode(ids, skip):
                    return text
    return None
