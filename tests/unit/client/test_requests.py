"""Python values on their way to the wire."""

import json
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokenfleet.client import GenerationOptions, InvalidRequest, Message
from tokenfleet.client.requests import chat_request, count_request, generate_request
from tokenfleet.v1 import common_pb2, inference_pb2


def test_what_is_left_out_is_absent() -> None:
    request = generate_request("m", "text", {"temperature": None, "max_tokens": None})
    assert request == inference_pb2.GenerateRequest(model="m", text="text")


def test_zero_is_not_left_out() -> None:
    sampling = generate_request("m", "text", {"temperature": 0, "seed": 0}).sampling
    assert sampling.HasField("temperature")
    assert sampling.HasField("seed")


def test_every_option_goes_somewhere() -> None:
    values: dict[str, Any] = {
        "max_tokens": 1,
        "n": 2,
        "temperature": 0.5,
        "top_p": 0.5,
        "top_k": 3,
        "min_p": 0.5,
        "repetition_penalty": 1.5,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.5,
        "seed": 4,
        "stop": ["a"],
        "stop_token_ids": [5],
        "ignore_eos": True,
        "min_tokens": 6,
        "json_schema": '{"type": "object"}',
        "priority": "batch",
        "ttft_objective_s": 0.5,
        "itl_objective_s": 0.25,
        "request_id": "r",
        "return_token_ids": True,
        "no_fallback": True,
    }
    assert values.keys() == get_type_hints(GenerationOptions).keys()
    request = chat_request("m", "hello", values)
    for name, value in values.items():
        if name != "priority":
            holder = request if name in request.DESCRIPTOR.fields_by_name else request.sampling
            assert getattr(holder, name) == value
    assert request.priority == common_pb2.PRIORITY_BATCH


def test_priorities_are_those_of_the_wire() -> None:
    names = get_args(get_type_hints(GenerationOptions)["priority"])
    for name in names:
        request = chat_request("m", "hello", {"priority": name})
        assert common_pb2.Priority.Name(request.priority) == f"PRIORITY_{name.upper()}"
    assert len(names) == len(common_pb2.Priority.values()) - 1


def test_a_single_stop_is_a_list_of_one() -> None:
    assert list(generate_request("m", "text", {"stop": "end"}).sampling.stop) == ["end"]


def test_a_schema_may_be_a_mapping() -> None:
    schema = {"type": "object", "properties": {}}
    assert json.loads(generate_request("m", "text", {"json_schema": schema}).sampling.json_schema) == schema


def test_messages_are_texts_values_or_mappings() -> None:
    plain = chat_request("m", "hello", {}).messages
    assert [(message.role, message.content) for message in plain] == [("user", "hello")]
    mapped = chat_request(
        "m",
        [
            Message("system", "s", name="n"),
            {"role": "user", "content": "hello", "name": "me"},
            {"role": "assistant", "content": None},
        ],
        {},
    ).messages
    assert [(one.role, one.content, one.name, one.raw_json) for one in mapped] == [
        ("system", "s", "n", ""),
        ("user", "hello", "me", ""),
        ("assistant", "", "", ""),
    ]


def test_richer_messages_travel_as_they_are() -> None:
    message = {"role": "tool", "content": "4", "tool_call_id": "c"}
    (wire,) = chat_request("m", [message], {}).messages
    assert wire.role == "tool"
    assert json.loads(wire.raw_json) == message


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 2**32}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"seed": -1}, "seed"),
        ({"stop": [1]}, "stop"),
        ({"stop": "\ud800"}, "stop"),
        ({"stop_token_ids": 7}, "stop_token_ids"),
        ({"priority": "urgent"}, "priority"),
        ({"priority": ["batch"]}, "priority"),
        ({"json_schema": {1, 2}}, "json_schema"),
        ({"request_id": 7}, "request_id"),
    ],
)
def test_values_that_do_not_fit_are_errors_of_their_option(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: ") as failed:
        generate_request("m", "text", options)
    assert failed.value.field == field
    assert failed.value.code is None


def test_an_option_that_does_not_exist_is_a_mistake_of_the_program() -> None:
    with pytest.raises(TypeError, match="did you mean 'temperature'"):
        generate_request("m", "text", {"temprature": 1})
    with pytest.raises(TypeError, match="unknown option"):
        chat_request("m", "text", {"zzz": None})


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([{"content": "x"}], "messages.0"),
        ([{"role": "user", "content": "x"}, 5], "messages.1"),
        ([{"role": 5, "content": "x"}], "messages.0"),
        ("\ud800", "messages.0"),
        ([{"role": "user", "content": "x", "image": object()}], "messages.0"),
    ],
)
def test_a_bad_message_is_named_by_its_position(messages: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as failed:
        chat_request("m", messages, {})
    assert failed.value.field == field


@pytest.mark.parametrize("prompt", ["\ud800", [-1], [2**32], ["a"], 5, None])
def test_a_bad_prompt_is_named(prompt: Any) -> None:
    with pytest.raises(InvalidRequest) as failed:
        generate_request("m", prompt, {})
    assert failed.value.field == "prompt"


def test_counting_takes_one_of_two() -> None:
    assert count_request("m", "text", None).text == "text"
    chat = count_request("m", None, "hello").chat
    assert chat.add_generation_prompt
    for text, messages in ((None, None), ("a", "b")):
        with pytest.raises(TypeError, match="either text or messages"):
            count_request("m", text, messages)


def test_nothing_is_sent_that_no_server_takes() -> None:
    with pytest.raises(InvalidRequest, match="at most 16777216"):
        generate_request("m", "x" * (16 * 1024 * 1024), {})


@example(model="m", messages=[], option="ignore_eos", value=1 << 63)
@given(
    model=st.text(),
    messages=st.lists(
        st.dictionaries(
            st.sampled_from(["role", "content", "name", "x"]), st.none() | st.text() | st.integers()
        )
    ),
    option=st.sampled_from(sorted(GenerationOptions.__annotations__)),
    value=st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.lists(st.text() | st.integers()),
)
def test_whatever_is_given_there_is_a_request_or_a_typed_error(
    model: str, messages: Any, option: str, value: Any
) -> None:
    try:
        request = chat_request(model, messages, {option: value})
    except InvalidRequest as error:
        assert error.field in {"model", option} or error.field.startswith("messages.")  # noqa: PT017
    else:
        assert inference_pb2.ChatRequest.FromString(request.SerializeToString()).model == model
