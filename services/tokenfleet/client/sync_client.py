"""The client for programs with threads, or with none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


class FleetClient:
    """Calls a fleet's gateways; safe to share between threads.

    targets: `host:port` of a gateway's gRPC port; or several, as IP addresses; or a DNS name that stands for
        several. Requests go round those that are ready.
    api_key: sent with each call.
    tls: True for a server with a publicly known certificate, `Tls` to say more; False sends in the clear.
    timeout: seconds for a whole answer, where a call names none. None leaves it to the gateway.
    attempts: how often a call may be tried before its first message, 1 to 5; 1 means no retries.
    wait_for_ready: wait for a gateway, up to the timeout, instead of failing when none can be reached.
    keepalive_s: seconds of silence after which a running call checks that the gateway is still there.

    Every method raises `FleetError`s, named by how one recovers. Close the client, or use it in `with`.
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
        way = connection(targets, api_key=api_key, tls=tls, attempts=attempts, keepalive_s=keepalive_s)
        self._metadata = way.metadata
        self._timeout = timeout
        self._wait_for_ready = wait_for_ready
        self.closed = False
        if way.credentials is None:
            self._channel = grpc.insecure_channel(way.target, way.options)
        else:
            self._channel = grpc.secure_channel(way.target, way.credentials, way.options)
        self._stub = inference_pb2_grpc.InferenceStub(self._channel)

    def generate(
        self,
        model: str,
        prompt: Prompt,
        *,
        timeout: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> DeltaStream:
        """Continues a text, or token ids. See `GenerationOptions`; `timeout` is in seconds."""
        request = generate_request(model, prompt, options)
        return self._stream(self._stub.Generate, request, timeout)

    def chat(
        self,
        model: str,
        messages: Conversation,
        *,
        timeout: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> DeltaStream:
        """Answers a conversation. See `GenerationOptions`; `timeout` is in seconds."""
        request = chat_request(model, messages, options)
        return self._stream(self._stub.Chat, request, timeout)

    def count_tokens(
        self,
        model: str,
        text: str | None = None,
        *,
        messages: Conversation | None = None,
        timeout: float | None = None,
    ) -> TokenCount:
        """How many tokens a text has, or a conversation as `chat` would send it to the model."""
        request = count_request(model, text, messages)
        return count_of(self._unary(self._stub.CountTokens, request, timeout))

    def models(self, *, timeout: float | None = None) -> list[Model]:
        """All models of the catalog."""
        request = inference_pb2.ListModelsRequest()
        return models_of(self._unary(self._stub.ListModels, request, timeout))

    def close(self) -> None:
        """Ends all running calls."""
        self.closed = True
        self._channel.close()

    def __enter__(self) -> FleetClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stream(self, method: Any, request: Any, timeout: float | None) -> DeltaStream:
        timeout = self._timeout if timeout is None else timeout
        return DeltaStream(self, self._start(method, request, timeout), timeout)

    def _unary(
        self, method: grpc.UnaryUnaryMultiCallable[Any, Wire], request: Any, timeout: float | None
    ) -> Wire:
        timeout = self._timeout if timeout is None else timeout
        try:
            answer: Wire = self._start(method, request, timeout)
        except grpc.RpcError as error:
            if self.closed:
                raise Cancelled("the client is closed") from error
            raise _translated(error, begun=False, timeout=timeout) from error
        return answer

    def _start(self, method: Any, request: Any, timeout: float | None) -> Any:
        try:
            return method(
                request, timeout=timeout, metadata=self._metadata, wait_for_ready=self._wait_for_ready
            )
        except ValueError as error:  # how grpc says that the channel is closed
            raise Cancelled("the client is closed") from error


class DeltaStream(Iterator[Delta]):
    """The deltas of one request, as they arrive; the request runs from the start.

    Iterate, or take `text()` or `result()`. Leaving the iteration early needs `close()` or `with`; a stream
    that nobody refers to any more is closed too. A closed stream frees what it held on its worker at once.
    """

    def __init__(self, client: FleetClient, call: Any, timeout: float | None) -> None:
        self._client = client
        self._call = call
        self._timeout = timeout
        self._growing = Growing()
        self._closed = False

    @property
    def request_id(self) -> str:
        """Known from the first delta on."""
        return self._growing.request_id

    def __next__(self) -> Delta:
        try:
            return self._growing.add(next(self._call).delta)
        except grpc.RpcError as error:
            if self._closed:
                raise StopIteration from error
            if self._client.closed:
                raise Cancelled("the client is closed", request_id=self.request_id) from error
            raise _translated(error, begun=self._growing.begun, timeout=self._timeout) from error

    def result(self) -> Answer:
        """Waits for the end; everything that came, also what was already iterated over."""
        for _ in self:
            pass
        if self._closed and self._growing.usage is None:
            raise Cancelled("the stream was closed before its end", request_id=self.request_id)
        return self._growing.answer()

    def text(self) -> str:
        """Waits for the end; the text of the first answer."""
        return self.result().text

    def close(self) -> None:
        """Cancels the request unless it is done; may be called from any thread."""
        self._closed = True
        self._call.cancel()

    def __enter__(self) -> DeltaStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _translated(error: Any, *, begun: bool, timeout: float | None) -> FleetError:
    """A failed call of grpc is its own error."""
    return from_call(
        error.code(), error.details() or "", error.trailing_metadata() or (), begun=begun, timeout_s=timeout
    )
