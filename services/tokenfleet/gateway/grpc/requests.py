"""Requests as they arrive over gRPC, checked by the same rules as those that arrive over HTTP.

Protobuf checks types, but neither ranges nor what is missing. Fields that both protocols have go through the
HTTP API's schema, so that one rule has one place and one wording.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast, get_args

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from pydantic import ValidationError

from tokenfleet.gateway.affinity import AFFINITY_CHARS, conversation_affinity
from tokenfleet.gateway.core import Prompt
from tokenfleet.gateway.grpc.wire_shape import check_shape
from tokenfleet.gateway.http.errors import invalid
from tokenfleet.gateway.http.schemas import MAX_MESSAGES, MAX_NAME_CHARS, Parameters, Role, explain
from tokenfleet.gateway.urgency import Urgency, objective_s
from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2 as pb
from tokenfleet.v1 import inference_pb2, tokenizer_pb2

Parsed = TypeVar("Parsed", bound=Message)
Generating = inference_pb2.GenerateRequest | inference_pb2.ChatRequest

ROLES: tuple[str, ...] = get_args(Role)
MAX_REQUEST_ID_CHARS = 128
# Would change the answer, and are not served.
_UNSERVED = ("logit_bias", "logprobs")
# Any value of their protobuf type is a good one; `seed` has another range over HTTP.
_UNCHECKED = frozenset({"json_schema", "seed", "stop_token_ids"})


@dataclass(slots=True, frozen=True)
class Inquiry:
    """A request for answers with every field checked."""

    model: str
    prompt: Prompt
    sampling: pb.SamplingParams
    budget: int | None  # tokens; None: what the context leaves
    choices: int
    urgency: Urgency
    request_id: str
    with_ids: bool
    fallback: bool


def parse(kind: type[Parsed], raw: bytes) -> Parsed:
    """Raises FleetError when the bytes are no such message, or one of too many parts."""
    check_shape(cast(Descriptor, kind.DESCRIPTOR), raw)
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        name = kind.DESCRIPTOR.name
        raise invalid("", f"the request is no valid {name}: is the client of this API's version?") from error


def read_generate(raw: bytes, max_choices: int) -> Inquiry:
    """Raises FleetError that names the field and the remedy."""
    request = parse(inference_pb2.GenerateRequest, raw)
    if request.WhichOneof("prompt") == "tokens":
        ids = request.tokens.token_ids
        job = tokenizer_pb2.EncodeJob(tokens=request.tokens)
        return _inquiry(request, Prompt(job, str(ids[:64])), max_choices, empty=not ids)
    job = tokenizer_pb2.EncodeJob(text=request.text, add_special_tokens=True)
    return _inquiry(request, Prompt(job, request.text[:AFFINITY_CHARS]), max_choices, empty=not request.text)


def read_chat(raw: bytes, max_choices: int) -> Inquiry:
    """Raises FleetError that names the field and the remedy."""
    request = parse(inference_pb2.ChatRequest, raw)
    chat = tokenizer_pb2.ChatInput(messages=request.messages, add_generation_prompt=True)
    return _inquiry(request, _conversation(chat), max_choices)


def read_count(raw: bytes) -> tuple[str, Prompt]:
    """The model, and what is to be counted for it. Raises FleetError that names the field and the remedy."""
    request = parse(inference_pb2.CountTokensRequest, raw)
    _check_parameters({"model": request.model})
    match request.WhichOneof("input"):
        case "chat":
            prompt = _conversation(request.chat)
        case "text":
            job = tokenizer_pb2.EncodeJob(text=request.text, add_special_tokens=True)
            prompt = Prompt(job, request.text[:AFFINITY_CHARS])
        case _:
            raise invalid("input", "input: set text or chat")
    prompt.job.count_only = True
    return request.model, prompt


def _inquiry(request: Generating, prompt: Prompt, max_choices: int, *, empty: bool = False) -> Inquiry:
    sampling = request.sampling
    values = {"model": request.model, "n": request.n or None, "max_tokens": request.max_tokens or None}
    _check_parameters(values | _given(sampling))
    if empty:
        raise invalid("prompt", "prompt is empty: send text or token ids")
    if request.n > max_choices:
        raise invalid("n", f"n: at most {max_choices} answers a request, and {request.n} were asked for")
    if request.priority not in pb.Priority.values():
        raise invalid("priority", f"priority: there is no class {request.priority}")
    urgency = Urgency(
        request.priority or pb.PRIORITY_STANDARD,
        objective_s(request.ttft_objective_s or None, "ttft_objective_s"),
        objective_s(request.itl_objective_s or None, "itl_objective_s"),
    )
    if sampling.HasField("top_k") and not sampling.top_k:
        sampling.ClearField("top_k")
    return Inquiry(
        model=request.model,
        prompt=prompt,
        sampling=sampling,
        budget=request.max_tokens or None,
        choices=request.n or 1,
        urgency=urgency,
        request_id=_request_id(request),
        with_ids=request.return_token_ids,
        fallback=not request.no_fallback,
    )


def _given(sampling: pb.SamplingParams) -> dict[str, Any]:
    """What the client set, as the shared schema wants to see it."""
    given: dict[str, Any] = {}
    for field, value in sampling.ListFields():
        if field.name in _UNSERVED:
            message = f"{field.name} is not served yet: leave it out"
            raise FleetError(pb.REASON_UNSUPPORTED, message, field=field.name)
        if field.name not in _UNCHECKED:
            given[field.name] = list(value) if field.name == "stop" else value
    return given


def _check_parameters(values: dict[str, Any]) -> None:
    try:
        Parameters.model_validate(values)
    except ValidationError as error:
        raise explain(error) from error


def _conversation(chat: tokenizer_pb2.ChatInput) -> Prompt:
    messages = chat.messages
    _check_messages(messages)
    for message in messages:
        if message.role == "developer":
            message.role = "system"
    affinity = conversation_affinity(
        (message.role, message.raw_json or message.content) for message in messages
    )
    return Prompt(tokenizer_pb2.EncodeJob(chat=chat), affinity)


def _check_messages(messages: Sequence[tokenizer_pb2.ChatMessage]) -> None:
    """A message given as JSON is the tokenizer's to check: it alone reads it."""
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise invalid("messages", f"messages: 1 to {MAX_MESSAGES} are needed, and {len(messages)} were sent")
    for index, message in enumerate(messages):
        if message.raw_json:
            continue
        if message.role not in ROLES:
            field = f"messages.{index}.role"
            raise invalid(field, f"{field}: {message.role[:64]!r} is none of {', '.join(ROLES)}")
        if len(message.name) > MAX_NAME_CHARS:
            field = f"messages.{index}.name"
            raise invalid(field, f"{field}: longer than {MAX_NAME_CHARS} characters")


def _request_id(request: Generating) -> str:
    given = request.request_id
    if not given:
        kind = "chat" if isinstance(request, inference_pb2.ChatRequest) else "gen"
        return f"{kind}-{uuid.uuid4().hex}"
    if len(given) > MAX_REQUEST_ID_CHARS or not given.isascii() or not given.isprintable():
        limit = f"at most {MAX_REQUEST_ID_CHARS} printable ASCII characters"
        raise invalid("request_id", f"request_id: {limit}, or nothing: the gateway makes one")
    return given
