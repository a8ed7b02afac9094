"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, TypeVar, Unpack

import grpc

from tokenfleet.client.answers import Answer, Delta, Growing, Model, TokenCount, count_of, models_of
from tokenfleet.client.connection import Tls, connection
from tokenfleet.client.errors import Cancelled, FleetError, from_call
from tokenfleet.client.requests import (
    Conversation,
    GenerationOptions,
    Prompt,
    chat_request,
    count_request,
    generate_request,
)
from tokenfleet.v1 import inference_pb2, inference_pb2_grpc

Wire = TypeVar("Wire")


class AsyncFleetClient:
    """Calls a fleet's gateways from one event loop: the one that its first call is made on.

    targets: `host:port` of a gateway's gRPC port; or several, as IP addresses; or a DNS name that stands for
        several. Requests go round those that are ready.
    api_key: sent with each call.
    tls: True for a server with a publicly known certificate, `Tls` to say more; False sends in the clear.
    timeout: seconds for a whole answer, where a call names none. None leaves it to the gateway.
    attempts: how often a call may be tried before its first message, 1 to 5; 1 means no retries.
    wait_for_ready: wait for a gateway, up to the timeout, instead of failing when none can be reached.
    keepalive_s: seconds of silence after which a running call checks that the gateway is still there.

    Every method raises `FleetError`s, named by how one recovers. Close the client, or use it in `async with`.
    """

    def __init__(
        self,
        targets: str | Sequence[str],
        *,
        api_key: str | None = None,
        tls: bool | Tls = False,
        timeout: float | None = None,
        attempts: int = 4,
        wait_for_ready: bool = False,
        keepalive_s: float = 10.0,
    ) -> None:
        self._way = connection(targets, api_key=api_key, tls=tls, attempts=attempts, keepalive_s=keepalive_s)
        self._timeout = timeout
        self._wait_for_ready = wait_for_ready
        self._channel: grpc.aio.Channel | None = None
        self._stub: inference_pb2_grpc.InferenceAsyncStub | None = None

    def generate(
        self,
        model: str,
        prompt: Prompt,
        *,
        timeout: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> AsyncDeltaStream:
        """Continues a text, or token ids. See `GenerationOptions`; `timeout` is in seconds."""
        request = generate_request(model, prompt, options)
        return self._stream(self._methods().Generate, request, timeout)

    def chat(
        self,
        model: str,
        messages: Conversation,
        *,
        timeout: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> AsyncDeltaStream:
        """Answers a conversation. See `GenerationOptions`; `timeout` is in seconds."""
        request = chat_request(model, messages, options)
        return self._stream(self._methods().Chat, request, timeout)

    async def count_tokens(
        self,
        model: str,
        text: str | None = None,
        *,
        messages: Conversation | None = None,
        timeout: float | None = None,
    ) -> TokenCount:
        """How many tokens a text has, or a conversation as `chat` would send it to the model."""
        request = count_request(model, text, messages)
        return count_of(await self._unary(self._methods().CountTokens, request, timeout))

    async def models(self, *, timeout: float | None = None) -> list[Model]:
        """All models of the catalog."""
        request = inference_pb2.ListModelsRequest()
        return models_of(await self._unary(self._methods().ListModels, request, timeout))

    async def aclose(self) -> None:
        """Ends all running calls."""
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> AsyncFleetClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _methods(self) -> inference_pb2_grpc.InferenceAsyncStub:
        """The channel belongs to the running event loop, so it is opened by the first call."""
        if self._stub is None:
            way = self._way
            if way.credentials is None:
                self._channel = grpc.aio.insecure_channel(way.target, way.options)
            else:
                self._channel = grpc.aio.secure_channel(way.target, way.credentials, way.options)
            self._stub = inference_pb2_grpc.InferenceStub(self._channel)
        return self._stub

    def _stream(self, method: Any, request: Any, timeout: float | None) -> AsyncDeltaStream:
        timeout = self._timeout if timeout is None else timeout
        return AsyncDeltaStream(self._start(method, request, timeout), timeout)

    async def _unary(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Any, Wire], request: Any, timeout: float | None
    ) -> Wire:
        timeout = self._timeout if timeout is None else timeout
        try:
            answer: Wire = await self._start(method, request, timeout)
        except grpc.aio.AioRpcError as error:
            raise _translated(error, begun=False, timeout=timeout) from error
        except asyncio.CancelledError as error:
            if _being_cancelled():
                raise
            raise Cancelled("the client is closed") from error
        return answer

    def _start(self, method: Any, request: Any, timeout: float | None) -> Any:
        try:
            return method(
                request, timeout=timeout, metadata=self._way.metadata, wait_for_ready=self._wait_for_ready
            )
        except grpc.aio.UsageError as error:  # how grpc says that the channel is closed
            raise Cancelled("the client is closed") from error


class AsyncDeltaStream(AsyncIterator[Delta]):
    """The deltas of one request, as they arrive; the request runs from the start.

    Iterate, or await `text()` or `result()`. Leaving the iteration early needs `aclose()` or `async with`; a
    stream that nobody refers to any more is closed too. A closed stream frees what it held on its worker at
    once.
    """

    def __init__(self, call: Any, timeout: float | None) -> None:
        self._call = call
        self._arriving: AsyncIterator[Any] = aiter(call)
        self._timeout = timeout
        self._growing = Growing()
        self._closed = False

    @property
    def request_id(self) -> str:
        """Known from the first delta on."""
        return self._growing.request_id

    def __aiter__(self) -> AsyncDeltaStream:
        return self

    async def __anext__(self) -> Delta:
        try:
            response = await anext(self._arriving)
        except grpc.aio.AioRpcError as error:
            if self._closed:
                raise StopAsyncIteration from error
            raise _translated(error, begun=self._growing.begun, timeout=self._timeout) from error
        except asyncio.CancelledError as error:
            if _being_cancelled():
                raise
            if self._closed:
                raise StopAsyncIteration from error
            raise Cancelled("the client is closed", request_id=self.request_id) from error
        return self._growing.add(response.delta)

    async def result(self) -> Answer:
        """Waits for the end; everything that came, also what was already iterated over."""
        async for _ in self:
            pass
        if self._closed and self._growing.usage is None:
            raise Cancelled("the stream was closed before its end", request_id=self.request_id)
        return self._growing.answer()

    async def text(self) -> str:
        """Waits for the end; the text of the first answer."""
        return (await self.result()).text

    async def aclose(self) -> None:
        """Cancels the request unless it is done."""
        self._closed = True
        self._call.cancel()

    async def __aenter__(self) -> AsyncDeltaStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # grpc's call refers to itself, so that nothing else would end it soon
        self._call.cancel()


def _being_cancelled() -> bool:
    """Whether it is this task that is cancelled, rather than the call that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _translated(error: grpc.aio.AioRpcError, *, begun: bool, timeout: float | None) -> FleetError:
    trailers = tuple(error.trailing_metadata() or ())
    return from_call(error.code(), error.details() or "", trailers, begun=begun, timeout_s=timeout)
