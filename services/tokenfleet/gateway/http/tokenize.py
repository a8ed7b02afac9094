"""`/tokenize` and `/detokenize`, in vLLM's shapes."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import orjson
from pydantic import ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tokenfleet.gateway.api_keys.keyring import Caller
from tokenfleet.gateway.core import Gateway, Order, Prompt
from tokenfleet.gateway.http.answers import chat_prompt, text_prompt
from tokenfleet.gateway.http.errors import invalid
from tokenfleet.gateway.http.guard import SCOPE_KEY
from tokenfleet.gateway.http.headers import CALLER_KEY, FIELDS_KEY, request_id, request_timeout_s
from tokenfleet.gateway.http.limits import Limits
from tokenfleet.gateway.http.schemas import (
    MAX_MESSAGES,
    Message,
    ModelName,
    RequestBody,
    TokenIds,
    describe_extras,
    parse_in_turns,
)
from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2 as pb


def _describe_input(schema: dict[str, Any]) -> None:
    describe_extras(schema)
    kinds = {"prompt": {"type": "string"}, "messages": {"type": "array"}}
    schema["oneOf"] = [{"required": [name], "properties": {name: kind}} for name, kind in kinds.items()]


class TokenizeRequest(RequestBody):
    """A text, or a conversation as the model's template lays it out."""

    model_config = ConfigDict(json_schema_extra=_describe_input)

    model: ModelName
    prompt: str | None = None
    messages: (
        Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)] | None
    ) = None
    add_special_tokens: bool | None = Field(
        None, description="of a text; unless said otherwise they are added"
    )
    add_generation_prompt: bool = Field(True, description="of a conversation")

    def check(self) -> None:
        super().check()
        if (self.prompt is None) == (self.messages is None):
            raise invalid("prompt", "prompt: send either prompt or messages")
        if self.messages is not None and self.add_special_tokens:
            field = "add_special_tokens"
            raise invalid(field, f"{field}: a conversation gets them from the model's template: leave it out")

    def as_prompt(self) -> Prompt:
        if self.messages is not None:
            return chat_prompt(self.messages, add_generation_prompt=self.add_generation_prompt)
        prompt = text_prompt(self.prompt or "")
        prompt.job.add_special_tokens = self.add_special_tokens is not False
        return prompt


class DetokenizeRequest(RequestBody):
    """Token ids to be turned back into text."""

    model: ModelName
    tokens: TokenIds


class TokenizeEndpoints:
    """Both operations, for whoever wants to count or to look at tokens without generating any."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[Route]:
        return [
            Route("/tokenize", self._tokenize, methods=["POST"]),
            Route("/detokenize", self._detokenize, methods=["POST"]),
        ]

    async def _tokenize(self, request: Request) -> Response:
        body = await parse_in_turns(TokenizeRequest, await request.body(), self._limits(request))
        timeout_s = self._timeout_s(request)
        caller: Caller = request.scope[CALLER_KEY]
        order = Order(
            request_id=request_id(request.scope[FIELDS_KEY], "tok"),
            model=body.model,
            sampling=pb.SamplingParams(),
            budget=None,
            deadline=asyncio.get_running_loop().time() + timeout_s,
            tenant=caller.tenant,
            priority=caller.priority(),
        )
        try:
            async with asyncio.timeout(timeout_s):
                tokens = list(await self._gateway.tokenize(order, body.as_prompt()))
        except TimeoutError as error:
            message = f"not tokenized within {timeout_s:g} s: try again"
            raise FleetError(pb.REASON_DEADLINE_EXCEEDED, message) from error
        context = self._gateway.catalog.get(body.model).context_length
        return _json({"count": len(tokens), "max_model_len": context, "tokens": tokens})

    async def _detokenize(self, request: Request) -> Response:
        body = await parse_in_turns(DetokenizeRequest, await request.body(), self._limits(request))
        text = await self._gateway.detokenize(body.model, body.tokens, self._timeout_s(request))
        return _json({"prompt": text})

    def _limits(self, request: Request) -> Limits:
        limits: Limits = request.scope[SCOPE_KEY].rules.limits
        return limits

    def _timeout_s(self, request: Request) -> float:
        return request_timeout_s(request.scope[FIELDS_KEY], self._gateway.settings.request_timeout_s)


def _json(body: object) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
