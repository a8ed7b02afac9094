"""Prompts and ids against what transformers, whose dialect templates are written in, makes of them."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest

from tests import real_model
from tests.unit.tokenizer.reference.__main__ import EXPECTED
from tests.unit.tokenizer.reference.cases import BOS, EOS, OPTIONS, SMOLLM2_PROMPT, Case, cases, digest
from tokenfleet.runtime.errors import FleetError
from tokenfleet.tokenizer.encoders import Encoder, open_encoder
from tokenfleet.tokenizer.model import LoadedModel, open_model
from tokenfleet.tokenizer.template import ChatTemplate
from tokenfleet.v1 import common_pb2, tokenizer_pb2

CONTENT: dict[str, Any] = json.loads(EXPECTED.read_text(encoding="utf-8"))
OUTCOMES: dict[str, dict[str, str]] = CONTENT["expected"]


def test_the_expected_outputs_belong_to_these_cases() -> None:
    """Otherwise write them anew, as `tests/unit/tokenizer/reference/__main__.py` says."""
    assert CONTENT["cases"] == digest()
    assert set(OUTCOMES) == {case.name for case in cases()}


def chat_of(case: Case) -> tokenizer_pb2.ChatInput:
    """As OpenAI's clients send it: a call's arguments are JSON text, and text may be in parts."""
    chat = tokenizer_pb2.ChatInput()
    for message in deepcopy(case.messages):
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
        if case.conversation == "text in parts":
            parts = [{"type": "text", "text": line} for line in message["content"].split("\n")]
            message["content"] = parts
        chat.messages.add(role=message["role"], raw_json=json.dumps(message))
    options = dict(OPTIONS[case.options])
    chat.add_generation_prompt = options.pop("add_generation_prompt", False)
    chat.continue_final_message = options.pop("continue_final_message", False)
    if "tools" in options:
        chat.tools_json = json.dumps(options.pop("tools"))
    if options:
        chat.template_kwargs_json = json.dumps(options)
    return chat


def model_for(case: Case, encoder: Encoder, model: LoadedModel) -> LoadedModel:
    # where a template has a prompt of its own the catalog has to ask for it
    system_prompt = SMOLLM2_PROMPT if case.template == "smollm2" else ""
    template = ChatTemplate(case.source, bos_token=BOS, eos_token=EOS, system_prompt=system_prompt)
    return LoadedModel(model.spec, model.bundle, encoder, template, model.prompts)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return open_model(real_model.spec(), real_model.cache().tokenizer(real_model.spec()), "auto", 1 << 20)


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.name)
def test_prompts_are_the_references(case: Case, model: LoadedModel) -> None:
    expected = OUTCOMES[case.name]
    ours = model_for(case, model.encoder, model)
    if "error" in expected:
        with pytest.raises(FleetError) as refused:
            ours.prompt(chat_of(case))
        assert refused.value.reason == common_pb2.REASON_INVALID_ARGUMENT
        assert refused.value.field == "messages"
        if expected["error"] == "TemplateError":
            assert expected["message"] in refused.value.message
        return
    assert ours.prompt(chat_of(case)) == expected["text"]


@pytest.mark.real_model
@pytest.mark.parametrize("backend", ["fastokens", "tokenizers"])
def test_ids_are_the_references(backend: str, model: LoadedModel) -> None:
    encoder = open_encoder(model.bundle, backend)
    compared = 0
    for case in cases():
        expected = OUTCOMES[case.name].get("ids")
        if expected is not None:
            ids = encoder.encode(model_for(case, encoder, model).prompt(chat_of(case)), False)
            assert " ".join(map(str, ids)) == expected, case.name
            compared += 1
    assert compared > 30
