import json
from typing import Any

import pytest

from tokenfleet.runtime.errors import FleetError
from tokenfleet.tokenizer.conversation import json_object, json_objects, messages_of
from tokenfleet.v1 import common_pb2, tokenizer_pb2


def chat_of(*messages: object) -> tokenizer_pb2.ChatInput:
    """Dictionaries are sent as JSON, pairs as role and content."""
    chat = tokenizer_pb2.ChatInput()
    for message in messages:
        if isinstance(message, tuple):
            chat.messages.add(role=message[0], content=message[1])
        else:
            chat.messages.add(role="ignored", raw_json=json.dumps(message))
    return chat


def refused(chat: tokenizer_pb2.ChatInput) -> FleetError:
    with pytest.raises(FleetError) as caught:
        messages_of(chat)
    return caught.value


def test_plain_messages() -> None:
    chat = chat_of(("system", "be brief"), ("user", "hi"))
    chat.messages[1].name = "ann"
    assert messages_of(chat) == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi", "name": "ann"},
    ]


def test_text_parts_become_lines_and_absent_content_is_empty() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    chat = chat_of({"role": "user", "content": parts}, {"role": "assistant", "content": None})
    assert [message["content"] for message in messages_of(chat)] == ["one\ntwo", ""]


def test_tool_calls_have_their_arguments_as_objects() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    (message,) = messages_of(chat_of({"role": "assistant", "tool_calls": [call]}))
    assert message["tool_calls"][0]["function"]["arguments"] == {"x": 1}


def test_a_conversation_cannot_be_empty() -> None:
    error = refused(chat_of())
    assert (error.reason, error.field) == (common_pb2.REASON_INVALID_ARGUMENT, "messages")


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (("robot", "hi"), "messages[1].role"),
        (("", "hi"), "messages[1].role"),
        ({"content": "hi"}, "messages[1].role"),
        ({"role": 3, "content": "hi"}, "messages[1].role"),
        ({"role": ["user"], "content": "hi"}, "messages[1].role"),
        ({"role": "user", "content": 3}, "messages[1].content"),
        ({"role": "user", "content": [{"type": "text", "text": 3}]}, "messages[1].content[0].text"),
        ({"role": "user", "content": [3]}, "messages[1].content[0]"),
        ({"role": "assistant", "tool_calls": {}}, "messages[1].tool_calls"),
        ({"role": "assistant", "tool_calls": [{}]}, "messages[1].tool_calls[0].function"),
        ([], "messages[1]"),
    ],
)
def test_what_is_wrong_is_named(message: Any, field: str) -> None:
    error = refused(chat_of(("user", "hi"), message))
    assert error.field == field
    assert error.message.startswith(field)


def test_bad_tool_arguments_are_named() -> None:
    call = {"function": {"name": "f", "arguments": "{"}}
    error = refused(chat_of({"role": "assistant", "tool_calls": [call]}))
    assert error.field == "messages[0].tool_calls[0].function.arguments"


def test_images_are_not_supported_yet() -> None:
    error = refused(chat_of({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}))
    assert error.reason == common_pb2.REASON_UNSUPPORTED
    assert "image_url" in error.message


@pytest.mark.parametrize("text", ["{", "[1]", "3", "null", '"\\ud800"'])
def test_json_of_another_shape_is_refused(text: str) -> None:
    with pytest.raises(FleetError, match="tools"):
        json_objects(text, "tools")
    with pytest.raises(FleetError, match="kwargs"):
        json_object(text, "kwargs")


def test_no_json_is_nothing() -> None:
    assert json_object("", "kwargs") == {}
    assert json_objects("", "tools") == []
