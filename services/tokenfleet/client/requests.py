"""From Python values to the wire's requests, with an error that names the argument when one does not fit.

Ranges are the server's to check, since only it knows the limits it was configured with.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, TypeVar

from google.protobuf import message as protobuf

from tokenfleet.client.errors import InvalidRequest
from tokenfleet.v1 import common_pb2, inference_pb2, tokenizer_pb2

MAX_MESSAGE_BYTES = 16 * 1024 * 1024

Sized = TypeVar("Sized", bound=protobuf.Message)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str
    name: str = ""


# A text alone is one message of the user. A mapping is a message as OpenAI's API has it.
Conversation = str | Sequence[Message | Mapping[str, Any]]
# Text, or the token ids of a text.
Prompt = str | Sequence[int]


class GenerationOptions(TypedDict, total=False):
    """What `generate` and `chat` take beside the prompt. What is left out is the model's default."""

    max_tokens: int  # at most so many tokens an answer; left out: what the context leaves
    n: int  # how many answers; 1
    temperature: float  # 0 to 2; 0: always the likeliest token; 1
    top_p: float  # above 0, to 1
    top_k: int  # the k likeliest tokens only
    min_p: float  # 0 to 1
    repetition_penalty: float  # above 0, to 10; 1: none
    presence_penalty: float  # -2 to 2
    frequency_penalty: float  # -2 to 2
    seed: int  # the same seed, request and worker give the same answer; 0 to 2**64 - 1
    stop: str | Sequence[str]  # texts that end the answer and are not part of it
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    min_tokens: int
    json_schema: str | Mapping[str, Any]  # the answer is JSON of this schema, where the engine has that
    priority: Literal["interactive", "standard", "batch"]  # which requests wait for which; standard
    ttft_objective_s: float  # the first token is wanted in so many seconds, sooner than its class has it
    itl_objective_s: float  # and each further one
    request_id: str  # found in the fleet's logs; the gateway makes one
    return_token_ids: bool
    no_fallback: bool  # no other model shall answer where this one cannot be had


_OPTIONS = frozenset(GenerationOptions.__annotations__)
_OF_REQUEST = frozenset(
    {
        *("max_tokens", "n", "request_id", "return_token_ids", "no_fallback"),
        *("ttft_objective_s", "itl_objective_s"),
    }
)
# 0 stands for the default on the wire, so that an explicit one would be misunderstood.
_AT_LEAST_ONE = frozenset({"max_tokens", "n"})
_ABOVE_ZERO = frozenset({"ttft_objective_s", "itl_objective_s"})

_PRIORITIES = {
    "interactive": common_pb2.PRIORITY_INTERACTIVE,
    "standard": common_pb2.PRIORITY_STANDARD,
    "batch": common_pb2.PRIORITY_BATCH,
}


def generate_request(model: str, prompt: Prompt, options: Mapping[str, Any]) -> inference_pb2.GenerateRequest:
    """Raises InvalidRequest or, for an option that does not exist, TypeError."""
    request = inference_pb2.GenerateRequest()
    with _naming("model"):
        request.model = model
    with _naming("prompt"):
        if isinstance(prompt, str):
            request.text = prompt
        else:
            request.tokens.token_ids.extend(prompt)
    _apply(request, options)
    return _sized(request)


def chat_request(model: str, messages: Conversation, options: Mapping[str, Any]) -> inference_pb2.ChatRequest:
    """Raises InvalidRequest or, for an option that does not exist, TypeError."""
    request = inference_pb2.ChatRequest()
    with _naming("model"):
        request.model = model
    _add_messages(request.messages, messages)
    _apply(request, options)
    return _sized(request)


def count_request(
    model: str, text: str | None, messages: Conversation | None
) -> inference_pb2.CountTokensRequest:
    """Raises InvalidRequest; TypeError unless exactly one of text and messages is given."""
    request = inference_pb2.CountTokensRequest()
    with _naming("model"):
        request.model = model
    if text is not None and messages is None:
        with _naming("text"):
            request.text = text
    elif messages is not None and text is None:
        _add_messages(request.chat.messages, messages)
        request.chat.add_generation_prompt = True
    else:
        raise TypeError("count_tokens() takes either text or messages")
    return _sized(request)


def _add_messages(wire: Any, messages: Conversation) -> None:
    if isinstance(messages, str):
        messages = [Message("user", messages)]
    for index, message in enumerate(messages):
        with _naming(f"messages.{index}"):
            _fill(wire.add(), message)


def _fill(wire: tokenizer_pb2.ChatMessage, message: Message | Mapping[str, Any]) -> None:
    if isinstance(message, Message):
        wire.role, wire.content, wire.name = message.role, message.content, message.name
        return
    wire.role = message["role"]
    content = message.get("content") or ""
    if isinstance(content, str) and message.keys() <= {"role", "content", "name"}:
        wire.content = content
        wire.name = message.get("name") or ""
    else:
        wire.raw_json = json.dumps(dict(message))


def _apply(
    request: inference_pb2.GenerateRequest | inference_pb2.ChatRequest, options: Mapping[str, Any]
) -> None:
    for name, value in options.items():
        if name not in _OPTIONS:
            near = difflib.get_close_matches(name, _OPTIONS, n=1)
            raise TypeError(f"unknown option {name!r}" + (f": did you mean {near[0]!r}?" if near else ""))
        if value is None:
            continue
        if name in _AT_LEAST_ONE and value == 0:
            raise _invalid(name, "must be at least 1; leave it out for the default")
        if name in _ABOVE_ZERO and value == 0:
            raise _invalid(name, "must be above 0; leave it out for that of the class")
        if name == "priority" and value not in tuple(_PRIORITIES):
            raise _invalid(name, f"{value!r} is none of {', '.join(_PRIORITIES)}")
        with _naming(name):
            if name == "priority":
                request.priority = _PRIORITIES[value]
            elif name in _OF_REQUEST:
                setattr(request, name, value)
            else:
                _set_sampling(request.sampling, name, value)


def _set_sampling(sampling: common_pb2.SamplingParams, name: str, value: Any) -> None:
    if name == "json_schema" and not isinstance(value, str):
        sampling.json_schema = json.dumps(value)
    elif name == "stop":
        sampling.stop.extend([value] if isinstance(value, str) else value)
    elif name == "stop_token_ids":
        sampling.stop_token_ids.extend(value)
    else:
        setattr(sampling, name, value)


@contextmanager
def _naming(field: str) -> Iterator[None]:
    """What the wire cannot take becomes an error of this field."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise _invalid(field, "the text holds a lone surrogate, which is not valid Unicode") from error
    except KeyError as error:
        raise _invalid(field, f"{error} is missing") from error
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise _invalid(field, str(error)) from error


def _sized(request: Sized) -> Sized:
    size = request.ByteSize()
    if size > MAX_MESSAGE_BYTES:
        raise _invalid("", f"the request has {size} bytes, and at most {MAX_MESSAGE_BYTES} can be sent")
    return request


def _invalid(field: str, message: str) -> InvalidRequest:
    text = f"{field}: {message}" if field else message
    return InvalidRequest(text, reason="invalid_argument", field=field)
