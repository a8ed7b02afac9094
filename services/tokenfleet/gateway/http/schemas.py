"""What clients may send, checked before anything else of the fleet hears of it.

Known parameters that change nothing here are accepted, since stock clients send them; known ones that would
change the answer and are not served get a 400 which says so; unknown ones are refused by name, because a
misspelt `temprature` that silently does nothing is worse than an error.
"""

from __future__ import annotations

import asyncio
import difflib
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tokenfleet.gateway.http.errors import invalid
from tokenfleet.gateway.http.json_shape import UNCOUNTED_BYTES, check_shape
from tokenfleet.gateway.http.limits import Limits
from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2 as pb

MAX_MESSAGES = 10_000
MAX_NAME_CHARS = 256
MAX_STOPS = 16
MAX_ALTERNATIVES = 20
MAX_SCHEMA_BYTES = 64 * 1024
MAX_TOKENS_LIMIT = 2**31 - 1

# Accepted and without effect on the answer.
_HARMLESS = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)
# Would change the answer, and are not served.
_UNSERVED = frozenset(
    {
        "audio",
        "chat_template",
        "chat_template_kwargs",
        "continue_final_message",
        "best_of",
        "echo",
        "function_call",
        "functions",
        "logit_bias",
        "modalities",
        "prediction",
        "reasoning_effort",
        "return_token_strs",
        "suffix",
        "tool_choice",
        "tools",
        "web_search_options",
    }
)
# Values that mean "not asked for".
_NEUTRAL: tuple[Any, ...] = (None, False, 0, [], {}, {"type": "text"}, "none", 1, ["text"])


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


# Of a list only the first error counts: a million of them would hold up everybody else's tokens for seconds.
Stop = Annotated[str, Field(min_length=1, max_length=1024)]
_StopList = Annotated[list[Stop], Field(fail_fast=True), Field(max_length=MAX_STOPS)]
Stops = Annotated[_StopList, BeforeValidator(_as_list, json_schema_input_type=Stop | _StopList)]


ModelName = Annotated[str, Field(min_length=1, max_length=256)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool = False


class TextFormat(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["text"]

    @property
    def json_schema_text(self) -> str:
        return ""


class JsonObjectFormat(BaseModel):
    """Any JSON object."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["json_object"]

    @property
    def json_schema_text(self) -> str:
        return '{"type":"object"}'


class NamedSchema(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    name: str = Field("", max_length=MAX_NAME_CHARS)
    schema_: dict[str, Any] = Field(alias="schema")


class JsonSchemaFormat(BaseModel):
    """JSON that the schema allows; `strict` or not, the engine keeps to it."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["json_schema"]
    json_schema: NamedSchema

    @property
    def json_schema_text(self) -> str:
        try:
            text = orjson.dumps(self.json_schema.schema_)
        except orjson.JSONEncodeError as error:
            raise invalid("response_format", f"response_format: {error}") from error
        if len(text) > MAX_SCHEMA_BYTES:
            field = "response_format.json_schema.schema"
            raise invalid(field, f"{field}: larger than {MAX_SCHEMA_BYTES} bytes")
        return text.decode()


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


def describe_extras(schema: dict[str, Any]) -> None:
    """Makes a JSON schema say what `check` does with parameters that the model does not have."""
    schema["additionalProperties"] = False
    for name in sorted(_HARMLESS):
        schema["properties"][name] = {"description": "taken, and without effect on the answer"}
    for name in sorted(_UNSERVED - schema["properties"].keys()):
        schema["properties"][name] = {"description": "not served: say nothing", "enum": list(_NEUTRAL)}


class RequestBody(BaseModel):
    """What clients send; parameters that it does not have are looked at one by one."""

    model_config = ConfigDict(extra="allow", strict=True, json_schema_extra=describe_extras)

    def check(self) -> None:
        """What a schema cannot say. Raises FleetError that names the field and the remedy."""
        _check_extras(self)


class Parameters(RequestBody):
    """What every generation takes, whichever protocol it came by."""

    model: ModelName
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=128)
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS_LIMIT)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=-1, le=MAX_TOKENS_LIMIT)
    min_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    repetition_penalty: float | None = Field(None, gt=0, le=10, allow_inf_nan=False)
    presence_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    frequency_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: Stops | None = None
    ignore_eos: bool = False
    min_tokens: int = Field(0, ge=0, le=MAX_TOKENS_LIMIT)
    return_token_ids: bool = False
    response_format: ResponseFormat | None = None

    def sampling(self) -> pb.SamplingParams:
        """The parameters as the worker takes them; what was not said stays absent."""
        sampling = pb.SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k if self.top_k is not None and self.top_k > 0 else None,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            ignore_eos=self.ignore_eos,
            min_tokens=self.min_tokens,
        )
        if self.seed is not None:
            sampling.seed = self.seed % 2**64
        if self.stop:
            sampling.stop.extend(self.stop)
        if self.response_format is not None:
            sampling.json_schema = self.response_format.json_schema_text
        if self.alternatives is not None:
            sampling.logprobs = self.alternatives
        return sampling

    @property
    def budget(self) -> int | None:
        """Tokens to generate at most; None: what the context leaves."""
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """Log probabilities wanted beside each token's own; None: not even that."""
        return None

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class TextPart(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["text"]
    text: str


Role = Literal["system", "developer", "user", "assistant"]


class Message(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    role: Role
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    name: str | None = Field(None, max_length=MAX_NAME_CHARS)

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class ChatCompletionRequest(Parameters):
    messages: Annotated[list[Message], Field(fail_fast=True)] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS_LIMIT)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES)

    def check(self) -> None:
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise invalid("top_logprobs", "top_logprobs: needs logprobs to be true")

    @property
    def alternatives(self) -> int | None:
        return self.top_logprobs or 0 if self.logprobs else None

    @property
    def budget(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


TokenId = Annotated[int, Field(ge=0, le=2**32 - 1)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]


def _describe_as_filled(prompt: dict[str, Any]) -> None:
    for kind in prompt["anyOf"]:
        while kind["type"] == "array":
            kind["minItems"] = 1
            kind = kind["items"]  # noqa: PLW2901
        if kind["type"] == "string":
            kind["minLength"] = 1


class CompletionRequest(Parameters):
    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(fail_fast=True)]
        | Annotated[list[TokenIds], Field(fail_fast=True)]
    ) = Field(json_schema_extra=_describe_as_filled)
    logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES)

    @property
    def alternatives(self) -> int | None:
        return self.logprobs

    def check(self) -> None:
        super().check()
        if not self.prompt or not all(self.prompts()):
            raise invalid("prompt", "prompt is empty: send text or token ids")

    def prompts(self) -> list[str | list[int]]:
        """One entry per prompt; OpenAI allows a batch of them."""
        prompt = self.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            return [prompt]
        return list(prompt)  # type: ignore[arg-type]


Kind = TypeVar("Kind", bound=RequestBody)


async def parse_in_turns(kind: type[Kind], body: bytes, limits: Limits) -> Kind:
    """The body as a request of this kind. Raises FleetError (400) that names the field and the remedy.

    Looking at a large one, parsing it and what comes of it take a turn of the event loop each: others have
    theirs in between.
    """
    if len(body) <= UNCOUNTED_BYTES:
        return parse(kind, body)
    check_shape(body, limits)
    await asyncio.sleep(0)
    request = parse(kind, body)
    await asyncio.sleep(0)
    return request


def parse(kind: type[Kind], body: bytes) -> Kind:
    """The same for a body whose shape is known to be good."""
    try:
        request = kind.model_validate_json(body)
    except ValidationError as error:
        raise explain(error) from error
    request.check()
    return request


def validate(kind: type[Kind], values: dict[str, Any]) -> Kind:
    """The same for a body that was parsed already."""
    try:
        request = kind.model_validate(values)
    except ValidationError as error:
        raise explain(error) from error
    request.check()
    return request


def _check_extras(request: BaseModel) -> None:
    for name, value in (request.model_extra or {}).items():
        # `True` equals 1, but asks for something
        if name in _HARMLESS or (name in _UNSERVED and value in _NEUTRAL and value is not True):
            continue
        if name in _UNSERVED:
            raise FleetError(pb.REASON_UNSUPPORTED, f"{name} is not served yet: leave it out", field=name)
        shown = name[:64]
        near = difflib.get_close_matches(shown, type(request).model_fields, n=1)
        hint = f"did you mean {near[0]}?" if near else "leave it out"
        raise invalid(shown, f"unknown parameter {shown!r}: {hint}")


def explain(error: ValidationError) -> FleetError:
    """The first thing that is wrong, with the name of its field."""
    first = error.errors(include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return invalid("", f"the body is no valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    field = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("list[", "constrained")))
    return invalid(field or "body", f"{field or 'body'}: {first['msg']}")
