"""The ids of the converted tokenizer against llama.cpp's own, on the real model's file."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings

from tests import real_model
from tests.unit.tokenizer import growing
from tokenfleet.runtime.models import TokenizerBundle, load_vocabulary
from tokenfleet.tokenizer.encoders import Encoder, open_encoder
from tokenfleet.tokenizer.model import open_model
from tokenfleet.v1 import tokenizer_pb2

pytestmark = pytest.mark.real_model

TEXTS = (
    "",
    " ",
    "The capital of France is Paris.",
    "it's I'll we've DON'T they'd 'tis rock'n'roll",
    "naïve café ﬁ e\u0301 Ĳsselmeer Straße ǅ",
    "1234567890 3.14159 10²³ ½ ² ⅷ Ⅷ ① ₂ ٠١٢٣ १२३ 七 \U0001d7d8\U0001d7d9",
    "日本語のテキスト。中文\uff0c測試 한국어 테스트 ไทย हिन्दी दुनिया العربية עברית",
    "👩‍👩‍👧‍👦🏳️‍🌈 🙂🙃 \U0001d518\U0001d52b\U0001d526",
    "def f(x):\n    return x**2  # sq\n\n\n\tif  a==b:\r\n\r\n  pass\n",
    '{"key": [1, 2.5e-3, null], "url": "http://example.com/?q=1&r=2#z"}',
    "   leading and trailing   ",
    "\n\n\n \n \t\t x \u3000ideographic\u00a0nbsp\u2028separator",
    "x" * 300 + " " * 100 + "1" * 50 + "=" * 80,
    "\x00\x01 control \x7f \u200b\u200d\ufeff � ĠĊ ▁ <0x0A>",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "a<|endoftext|>b <repo_name>x <|im_start|> <|not_special|> <|im_start",
)

Tokenize = Callable[[str], list[int]]


@pytest.fixture(scope="module")
def bundle() -> TokenizerBundle:
    return real_model.cache().tokenizer(real_model.spec())


@pytest.fixture(scope="module")
def llama_cpp() -> Tokenize:
    xllamacpp = pytest.importorskip("xllamacpp", reason="no llama.cpp for this platform")
    params = xllamacpp.CommonParams()
    params.model.path = str(real_model.cache().weights(real_model.spec()))
    params.n_parallel, params.n_ctx, params.cpuparams.n_threads = 1, 256, 1
    params.warmup, params.verbosity = False, -1
    server = xllamacpp.Server(params)

    def tokenize(text: str) -> list[int]:
        body = json.dumps({"content": text, "parse_special": True, "add_special": True}).encode()
        request = urllib.request.Request(f"{server.listening_address}/tokenize", body)
        with urllib.request.urlopen(request, timeout=10) as response:
            return list(json.load(response)["tokens"])

    return tokenize


@pytest.fixture(scope="module", params=["fastokens", "tokenizers"])
def encoder(request: pytest.FixtureRequest, bundle: TokenizerBundle) -> Encoder:
    return open_encoder(bundle, request.param)


def test_ids_are_llama_cpps(encoder: Encoder, llama_cpp: Tokenize) -> None:
    code = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))]
    for text in (*TEXTS, *code, "\n".join(TEXTS)):
        assert list(encoder.encode(text, True)) == llama_cpp(text), text[:80]


def test_ids_decode_to_the_text_they_came_from(encoder: Encoder, bundle: TokenizerBundle) -> None:
    vocabulary = load_vocabulary(bundle)
    for text in TEXTS:
        ids = encoder.encode(text, False)
        assert encoder.decode(ids, False) == text
        if not vocabulary.special_ids.intersection(ids):
            assert b"".join(vocabulary.token_bytes[token] for token in ids) == text.encode()


@pytest.mark.parametrize("backend", ["fastokens", "tokenizers"])
def test_a_conversations_ids_are_those_of_the_whole_text(bundle: TokenizerBundle, backend: str) -> None:
    model = growing.model_of(bundle, backend, 1 << 20)
    found = 0

    @settings(max_examples=60, deadline=None)
    @given(growing.steps)
    def conversations_stay_right(moves: list[tuple[int, growing.Step, str]]) -> None:
        nonlocal found
        conversations = growing.Conversations()
        for which, step, salt in moves:
            found += growing.check(model, conversations.step(which, step), salt).cached_tokens

    conversations_stay_right()
    assert found > 0


def test_the_faster_library_passes_its_check(bundle: TokenizerBundle) -> None:
    assert open_encoder(bundle, "auto").name == "fastokens"


def test_an_empty_system_prompt_suppresses_the_models_own(bundle: TokenizerBundle) -> None:
    job = tokenizer_pb2.EncodeJob(job_id=1)
    job.chat.messages.add(role="user", content="What is the capital of France?")
    job.chat.add_generation_prompt = True
    prompts = []
    for system_prompt in ("", "You are a poet."):
        spec = real_model.spec()
        spec.system_prompt = system_prompt
        model = open_model(spec, bundle, "tokenizers", 0)
        result = tokenizer_pb2.EncodeResult()
        model.encode(job, result)
        prompts.append(model.decode(list(result.token_ids), False))
    turn = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    assert prompts == [turn, "<|im_start|>system\nYou are a poet.<|im_end|>\n" + turn]


def test_the_catalogs_figures(bundle: TokenizerBundle) -> None:
    assert bundle.context_length == real_model.spec().context_length
    assert bundle.eos_token_ids == (2, 0)
    assert load_vocabulary(bundle).size == 49_152


def test_a_worker_has_its_vocabulary_at_once(bundle: TokenizerBundle) -> None:
    used = sum(os.times()[:4])  # of processor time, its children's too
    load_vocabulary(bundle)
    assert sum(os.times()[:4]) - used < 0.5
