"""A catalog without a loader, and models whose encoding takes as long as a test wants."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence
from pathlib import Path

from tokenfleet.runtime.catalog import CatalogWatch
from tokenfleet.runtime.models import TokenizerBundle
from tokenfleet.tokenizer.borders import Borders
from tokenfleet.tokenizer.model import LoadedModel
from tokenfleet.tokenizer.prompt_encoder import PromptEncoder
from tokenfleet.v1 import common_pb2, tokenizer_pb2


def spec(name: str, *, warm: bool = False, block_size: int = 2) -> common_pb2.ModelSpec:
    policy = common_pb2.ModelSpec.POLICY_WARM if warm else common_pb2.ModelSpec.POLICY_LAZY
    return common_pb2.ModelSpec(name=name, block_size=block_size, policy=policy)


def publish(catalog: CatalogWatch, *specs: common_pb2.ModelSpec) -> None:
    """What happens when the loader sends a catalog."""
    catalog.models = {spec.name: spec for spec in specs}
    catalog.first.set()
    for call in tuple(catalog.on_change):
        call()


class ByteEncoder:
    """An id is a byte. Text that begins with `wait` waits until it is let go."""

    name = "bytes"
    vocabulary_size = 256
    relative_cost = 1

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.let_go = threading.Event()
        self.threads: list[str] = []

    def encode(self, text: str, add_special_tokens: bool) -> array[int]:
        if not text:
            return array("I")
        self.threads.append(threading.current_thread().name)
        if text.startswith("wait"):
            self.entered.set()
            assert self.let_go.wait(10)
        if text == "crash":
            raise ZeroDivisionError
        return array("I", list(text.encode()))

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        return bytes(token_ids).decode()


def loaded(spec: common_pb2.ModelSpec, encoder: ByteEncoder | None = None) -> LoadedModel:
    bundle = TokenizerBundle(Path("tokenizer.json"), None, None, None, None, (), "", 0)
    encoder = encoder or ByteEncoder()
    return LoadedModel(spec, bundle, encoder, None, PromptEncoder(encoder, Borders({}), spec.block_size, 0))


def job(number: int, text: str, model: str = "m", deadline_ms: int = 0) -> tokenizer_pb2.EncodeJob:
    context = common_pb2.RequestContext(deadline_ms=deadline_ms)
    return tokenizer_pb2.EncodeJob(job_id=number, model=model, text=text, context=context)
