"""Bodies of too many pieces are told from those of long texts, without parsing either."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from google.protobuf.descriptor import Descriptor
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenfleet.gateway.grpc import wire_shape
from tokenfleet.gateway.http import json_shape
from tokenfleet.gateway.http.limits import Limits
from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2, inference_pb2, tokenizer_pb2

LIMITS = Limits(body_values=2_000, body_strings=1_000)
MEGABYTE = 1_000_000


def too_much(body: bytes) -> str:
    try:
        json_shape.check_shape(body, LIMITS)
    except FleetError as error:
        return error.message
    return ""


@pytest.mark.parametrize(
    "text",
    ["x" * MEGABYTE, '"' * MEGABYTE, ",[{" * MEGABYTE, '\\"' * MEGABYTE, json.dumps({"a": [1] * 9}) * 9_000],
    ids=lambda text: text[:8],
)
def test_what_stands_in_a_text_does_not_count(text: str) -> None:
    assert too_much(json.dumps({"prompt": text}).encode()) == ""
    assert too_much(json.dumps({"prompt": json.dumps(text)}).encode()) == ""


@pytest.mark.parametrize(
    ("body", "setting"),
    [
        (b"[" + b"1," * 100_000 + b"1]", "--max-body-values"),
        (b"[" + b"{}," * 50_000 + b"{}]", "--max-body-values"),
        (b"[" * 100_000, "--max-body-values"),
        (b"{" + b'"key":1,' * 20_000 + b'"key":1}', "--max-body-strings"),
        (b"{" + b'"k\\\\":1,' * 20_000 + b'"key":1}', "--max-body-strings"),
        (b"[" + b'"\\"",' * 20_000 + b'""]', "--max-body-strings"),
    ],
    ids=lambda value: repr(value[:9]),
)
def test_too_many_pieces_are_refused_and_the_setting_is_named(body: bytes, setting: str) -> None:
    assert setting in too_much(body)
    assert too_much(body[: json_shape.UNCOUNTED_BYTES]) == ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='ab"\\,[{é', max_size=12),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(alphabet='k"\\', max_size=4), inner),
    max_leaves=60,
)


def pieces(value: Any) -> tuple[int, int]:
    """Strings with keys, and values that are in or are a container."""
    if isinstance(value, str):
        return 1, 0
    if not isinstance(value, list | dict):
        return 0, 0
    inner = [pieces(one) for one in (value.values() if isinstance(value, dict) else value)]
    keys = len(value) if isinstance(value, dict) else 0
    return keys + sum(strings for strings, _ in inner), max(1, len(value)) + sum(
        values for _, values in inner
    )


@settings(max_examples=200, deadline=None)
@given(value=JSON)
def test_no_more_than_the_limits_gets_through_and_less_always_does(value: Any) -> None:
    strings, values = pieces(value)
    body = json.dumps(value).encode().ljust(json_shape.UNCOUNTED_BYTES + 1)

    def taken(most_strings: int, most_values: int) -> bool:
        try:
            json_shape.check_shape(body, Limits(body_strings=most_strings, body_values=most_values))
        except FleetError:
            return False
        return True

    assert taken(strings, values)
    assert values == 0 or not taken(strings, values - 1)
    assert strings < 3 or not taken((strings - 1) // 2, values)


def walk(kind: Any, raw: bytes) -> str:
    try:
        wire_shape.check_shape(cast(Descriptor, kind.DESCRIPTOR), raw)
    except FleetError as error:
        return error.field or error.message
    return ""


CHAT = inference_pb2.ChatRequest(model="m").SerializeToString()
MANY = CHAT + b"\x12\x00" * 100_000
SAMPLING = common_pb2.SamplingParams(stop=["x" * 9] * 40_000)


@pytest.mark.parametrize(
    ("kind", "raw", "field"),
    [
        (inference_pb2.ChatRequest, MANY, "messages"),
        (inference_pb2.ChatRequest, CHAT + b"\x78\x00" * 100_000, "messages"),
        (
            inference_pb2.ChatRequest,
            inference_pb2.ChatRequest(sampling=SAMPLING).SerializeToString(),
            "sampling",
        ),
        (inference_pb2.ChatRequest, CHAT + b"\x1a\x02\x58\x01" * 100_000, "messages"),
        (inference_pb2.GenerateRequest, b"\x1a\x81\x80\x80\x02" + b"\0" * (4 * 1024 * 1024 + 1), "tokens"),
        (
            inference_pb2.CountTokensRequest,
            inference_pb2.CountTokensRequest(
                chat=tokenizer_pb2.ChatInput(messages=[tokenizer_pb2.ChatMessage()] * 100_000)
            ).SerializeToString(),
            "messages",
        ),
        (inference_pb2.ChatRequest, b"\x0b" * 100_000, "the request is no valid ChatRequest: it has groups"),
    ],
)
def test_a_message_of_too_many_parts_is_refused_by_name(kind: Any, raw: bytes, field: str) -> None:
    assert walk(kind, raw) == field


def test_large_messages_within_the_limits_are_walked_to_their_end() -> None:
    message = tokenizer_pb2.ChatMessage(role="user", content="x" * 100)
    for request in (
        inference_pb2.ChatRequest(model="m", messages=[message] * 10_000, n=2, request_id="x" * 100),
        inference_pb2.GenerateRequest(tokens=tokenizer_pb2.TokenInput(token_ids=range(500_000))),
        inference_pb2.CountTokensRequest(chat=tokenizer_pb2.ChatInput(messages=[message] * 10_000)),
    ):
        assert walk(type(request), request.SerializeToString()) == ""


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(max_size=200))
def test_garbage_is_walked_without_an_accident(raw: bytes) -> None:
    walk(inference_pb2.ChatRequest, raw + bytes(wire_shape.UNWALKED_BYTES))
    walk(inference_pb2.ChatRequest, (raw * wire_shape.UNWALKED_BYTES)[: wire_shape.UNWALKED_BYTES + 1])
