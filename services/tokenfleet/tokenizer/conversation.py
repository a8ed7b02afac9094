"""A conversation as chat templates want it: a list of dictionaries, checked."""

from __future__ import annotations

from typing import Any

import orjson

from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2, tokenizer_pb2

Message = dict[str, Any]

ROLES = ("assistant", "developer", "system", "tool", "user")


def invalid(field: str, message: str) -> FleetError:
    return FleetError(common_pb2.REASON_INVALID_ARGUMENT, f"{field}: {message}", field=field)


def messages_of(chat: tokenizer_pb2.ChatInput) -> list[Message]:
    """Raises FleetError (INVALID_ARGUMENT) that names the message and what is wrong with it."""
    if not chat.messages:
        raise invalid("messages", "a conversation needs at least one message")
    return [_checked(message, index) for index, message in enumerate(chat.messages)]


def json_object(text: str, field: str) -> dict[str, Any]:
    """The object; an empty text is an empty object."""
    if not text:
        return {}
    loaded = _parsed(text, field)
    if not isinstance(loaded, dict):
        raise invalid(field, "expected a JSON object")
    return loaded


def json_objects(text: str, field: str) -> list[dict[str, Any]]:
    """The array of objects; an empty text is an empty array."""
    if not text:
        return []
    loaded = _parsed(text, field)
    if not isinstance(loaded, list) or not all(isinstance(item, dict) for item in loaded):
        raise invalid(field, "expected a JSON array of objects")
    return loaded


def _parsed(text: str, field: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise invalid(field, f"no valid JSON: {error}") from error


def _checked(message: tokenizer_pb2.ChatMessage, index: int) -> Message:
    # for every message of every turn: a plain one must cost no more than the reading of its fields
    if raw := message.raw_json:
        built = _from_json(raw, f"messages[{index}]")
    else:
        built = {"role": message.role, "content": message.content}
        if name := message.name:
            built["name"] = name
    if built.get("role") not in ROLES:
        raise invalid(
            f"messages[{index}].role", f"{built.get('role')!r} is no role; there are {', '.join(ROLES)}"
        )
    return built


def _from_json(raw: str, field: str) -> Message:
    built = json_object(raw, field)
    built["content"] = _text(built.get("content"), f"{field}.content")
    if "tool_calls" in built:
        built["tool_calls"] = _tool_calls(built["tool_calls"], f"{field}.tool_calls")
    return built


def _text(content: object, field: str) -> str:
    """Templates concatenate strings: text parts are joined by newlines, absent content is empty."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if not isinstance(content, list):
        raise invalid(field, "expected a string or a list of content parts")
    return "\n".join(_part(part, f"{field}[{index}]") for index, part in enumerate(content))


def _part(part: object, field: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if not isinstance(part, dict) or kind != "text":
        raise FleetError(
            common_pb2.REASON_UNSUPPORTED,
            f"{field}: content of type {kind!r} is not supported, only text is",
            field=field,
        )
    if not isinstance(part.get("text"), str):
        raise invalid(f"{field}.text", "expected a string")
    return str(part["text"])


def _tool_calls(calls: object, field: str) -> list[Any]:
    """OpenAI sends a call's arguments as JSON text; templates want the object."""
    if calls is None:
        return []
    if not isinstance(calls, list):
        raise invalid(field, "expected a list")
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise invalid(f"{field}[{index}].function", "expected an object")
        if isinstance(function.get("arguments"), str):
            where = f"{field}[{index}].function.arguments"
            function["arguments"] = _parsed(function["arguments"] or "{}", where)
    return calls
