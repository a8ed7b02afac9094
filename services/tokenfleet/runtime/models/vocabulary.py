"""The bytes behind each token id: what turns generated ids into text."""

from __future__ import annotations

import json
import subprocess
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.last_words import last_words
from tokenfleet.runtime.models.bundle import TokenizerBundle, load_failed
from tokenfleet.runtime.models.token_bytes import TokenBytes
from tokenfleet.v1 import common_pb2

_READER = Path(__file__).with_name("vocabulary_reader.py")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Indexed by id. Special tokens, and ids that no token has, are b""."""

    token_bytes: Sequence[bytes]
    special_ids: frozenset[int]

    @property
    def size(self) -> int:
        return len(self.token_bytes)

    def text_of(self, token: int) -> str:
        """To be shown alone: a part of a character as U+FFFD, an id that is not known as nothing."""
        return self.token_bytes[token].decode(errors="replace") if token < self.size else ""


def load_vocabulary(bundle: TokenizerBundle) -> Vocabulary:
    """Blocks while a process of its own reads it; that module says why.

    Raises FleetError: LOAD_FAILED when the file is broken, UNSUPPORTED when its decoder is of
    no known family.
    """
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(_READER), str(bundle.tokenizer_json)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        said = last_words(done.stderr.decode(errors="replace"), done.returncode)
        raise load_failed(f"{bundle.tokenizer_json} is no usable tokenizer: {said}")
    line, _, packed = done.stdout.partition(b"\n")
    head = json.loads(line)
    if "refused" in head:
        raise FleetError(common_pb2.REASON_UNSUPPORTED, head["refused"], field="tokenizer_source")
    ends = array("I")
    border = head["size"] * ends.itemsize
    ends.frombytes(packed[:border])
    return Vocabulary(TokenBytes(packed[border:], ends), frozenset(head["special"]))
