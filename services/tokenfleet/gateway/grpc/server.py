"""`tokenfleet.v1.Inference`: the four methods, from the request's bytes to the last message.

The handlers take bytes and parse them here, so that bytes which are no message get a typed error like every
other bad input, instead of a traceback in the log and an UNKNOWN for the client.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from tokenfleet.gateway.api_keys.keyring import Caller
from tokenfleet.gateway.core import Gateway, Order
from tokenfleet.gateway.grpc.call import Call, Context
from tokenfleet.gateway.grpc.requests import Inquiry, parse, read_chat, read_count, read_generate
from tokenfleet.gateway.grpc.residency import Residency
from tokenfleet.gateway.grpc.sink import DeltaSink, Response
from tokenfleet.gateway.sequence import Sequence
from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.grpc_host import GrpcHost
from tokenfleet.v1 import common_pb2 as pb
from tokenfleet.v1 import inference_pb2

SERVICE = "tokenfleet.v1.Inference"
AUTHORIZATION_KEY = "authorization"
# Between saying "not ready" and closing the door. gRPC drops calls that are on their way in that moment, so
# clients that follow the health service get the time to look elsewhere; the part is of the grace.
LAME_DUCK_S = 0.5
LAME_DUCK_PART = 0.02
# Between telling the last clients that the process ends and cutting their connections.
FAREWELL_S = 1.0


class InferenceServer:
    """The public API over gRPC."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._residency = Residency(gateway.settings.loader)
        self._running: set[Call] = set()

    def register(self, server: grpc.aio.Server) -> None:
        # typed loosely: grpc's stubs know only the handlers of a threaded server
        streams: dict[str, Any] = {"Generate": self._generate, "Chat": self._chat}
        unary: dict[str, Any] = {"CountTokens": self._count_tokens, "ListModels": self._list_models}
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for name, method in streams.items():
            handlers[name] = grpc.unary_stream_rpc_method_handler(method, None, _serialize)
        for name, method in unary.items():
            handlers[name] = grpc.unary_unary_rpc_method_handler(method, None, _serialize)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def stop(self, host: GrpcHost, grace_s: float) -> None:
        """Takes nothing new, lets running calls finish within the grace, and tells the rest why they end."""
        await asyncio.sleep(min(LAME_DUCK_S, grace_s * LAME_DUCK_PART))
        cutting_off = asyncio.get_running_loop().call_later(grace_s, self._cut_off)
        await host.stop(grace_s + FAREWELL_S)
        cutting_off.cancel()
        await self._residency.stop()

    def _cut_off(self) -> None:
        for call in tuple(self._running):
            call.interruption.stop(
                FleetError(
                    pb.REASON_DRAINING, "the gateway is stopping: send the request again", retry_after_s=1.0
                )
            )

    async def _generate(self, raw: bytes, context: Context) -> None:
        async with self._call(context) as call:
            caller = self._admit(context)
            inquiry = read_generate(raw, self._gateway.settings.max_choices)
            await self._answer(call, caller, context, inquiry, inference_pb2.GenerateResponse)

    async def _chat(self, raw: bytes, context: Context) -> None:
        async with self._call(context) as call:
            caller = self._admit(context)
            inquiry = read_chat(raw, self._gateway.settings.max_choices)
            await self._answer(call, caller, context, inquiry, inference_pb2.ChatResponse)

    async def _count_tokens(self, raw: bytes, context: Context) -> inference_pb2.CountTokensResponse:
        async with self._call(context) as call:
            caller = self._admit(context)
            model, prompt = read_count(raw)
            order = Order(
                request_id="",
                model=model,
                sampling=pb.SamplingParams(),
                budget=None,
                deadline=call.deadline,
                tenant=caller.tenant,
                priority=caller.priority(),
            )
            count = await self._gateway.count(order, prompt)
            context_length = self._gateway.catalog.get(model).context_length
            return inference_pb2.CountTokensResponse(tokens=count, context_length=context_length)

    async def _list_models(self, raw: bytes, context: Context) -> inference_pb2.ListModelsResponse:
        async with self._call(context):
            self._admit(context)
            parse(inference_pb2.ListModelsRequest, raw)
            resident = await self._residency.resident()
            models = [
                inference_pb2.ListModelsResponse.Model(
                    name=spec.name,
                    context_length=spec.context_length,
                    resident=spec.name in resident,
                    created_unix_s=spec.created_unix_s,
                )
                for spec in self._gateway.catalog.models.values()
            ]
            return inference_pb2.ListModelsResponse(models=models)

    def _call(self, context: Context) -> Call:
        settings = self._gateway.settings
        return Call(context, self._gateway.metrics, settings.request_timeout_s, self._running)

    def _admit(self, context: Context) -> Caller:
        """Raises FleetError (UNAUTHENTICATED); nothing of the request was looked at by then."""
        for key, value in context.invocation_metadata() or ():
            if key == AUTHORIZATION_KEY:
                return self._gateway.keys.admit(value.encode() if isinstance(value, str) else value)
        return self._gateway.keys.admit(None)

    async def _answer(
        self, call: Call, caller: Caller, context: Context, inquiry: Inquiry, response: type[Response]
    ) -> None:
        call.request_id = inquiry.request_id
        order = Order(
            request_id=inquiry.request_id,
            model=inquiry.model,
            sampling=inquiry.sampling,
            budget=inquiry.budget,
            deadline=call.deadline,
            tenant=caller.tenant,
            priority=caller.priority(inquiry.urgency.priority),
            urgency=inquiry.urgency,
            fallback=inquiry.fallback,
        )
        sink = DeltaSink(
            context.write,
            response,
            request_id=inquiry.request_id,
            model=inquiry.model,
            choices=inquiry.choices,
            with_ids=inquiry.with_ids,
            buffer_bytes=self._gateway.settings.client_buffer_bytes,
            on_slow=call.interruption.stop,
        )
        loop = asyncio.get_running_loop()
        waking = loop.call_later(self._gateway.settings.decision_wait_s, sink.show_loading)

        async def attempt(order: Order) -> None:
            generation, budget = await self._gateway.prepare(order, inquiry.prompt)
            sequences = [Sequence(generation, index, budget, sink) for index in range(inquiry.choices)]
            call.sequences = sequences
            await self._run(sequences, sink)

        try:
            await self._gateway.answer(order, attempt, sink.instead)
        finally:
            waking.cancel()

    async def _run(self, sequences: list[Sequence], sink: DeltaSink) -> None:
        """Generates beside writing; when either ends badly, so does the other."""
        loop = asyncio.get_running_loop()
        generating = loop.create_task(self._gateway.run(sequences, sink.finish))
        try:
            await sink.pump(generating)
        finally:
            generating.cancel()
            await asyncio.gather(generating, return_exceptions=True)
        generating.result()


def _serialize(message: Any) -> bytes:
    raw: bytes = message.SerializeToString()
    return raw
