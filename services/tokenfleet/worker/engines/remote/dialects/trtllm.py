"""`trtllm.TrtllmService`, as TensorRT-LLM's server offers it.

It listens only once its model is loaded, has no standard health service, tells no load, and publishes no
cache events: what the router wants to know of these comes from the worker's own books. The last message
repeats the whole answer, which is compared with the chunks, so that no id is lost between the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from smg_grpc_proto import trtllm_service_pb2 as pb

from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2
from tokenfleet.worker.engines.base import Generation
from tokenfleet.worker.engines.remote.dialects.base import (
    Piece,
    ServerFacts,
    ServerLoad,
    TokenLogprob,
    least_tokens,
    or_neutral,
)
from tokenfleet.worker.engines.remote.server import Server
from tokenfleet.worker.engines.resuming import json_schema, resumed_seed


class TrtllmDialect:
    engine = "trtllm"
    service = "trtllm.TrtllmService"
    features = frozenset({"json_schema", "logprobs", "min_tokens", "seed"})
    generate_request = pb.GenerateRequest
    generate_response = pb.GenerateResponse

    def request(self, generation: Generation, request_id: str) -> Any:
        sampling = generation.sampling
        if sampling.logit_bias:
            raise FleetError(
                common_pb2.REASON_UNSUPPORTED,
                "logit_bias: TrtllmService takes one number for each id of the vocabulary or none",
                field="logit_bias",
            )
        request = pb.GenerateRequest(
            request_id=request_id,
            tokenized=pb.TokenizedInput(input_token_ids=generation.token_ids),
            sampling_config=_sampling_config(generation),
            output_config=pb.OutputConfig(exclude_input_from_output=True),
            max_tokens=generation.max_tokens,
            streaming=True,
            ignore_eos=sampling.ignore_eos,
        )
        if sampling.HasField("logprobs"):
            request.output_config.logprobs = sampling.logprobs
        if schema := json_schema(generation):
            request.guided_decoding.guide_type = pb.GuidedDecodingParams.GUIDE_TYPE_JSON_SCHEMA
            request.guided_decoding.guide = schema
        return request

    def read(self, message: Any) -> Piece:
        if message.HasField("chunk"):
            chunk = message.chunk
            return Piece(chunk.token_ids, "", chunk.cached_tokens, _logprobs(chunk.logprobs))
        complete = message.complete
        return Piece(
            (), complete.finish_reason or "error", complete.cached_tokens, (), complete.output_token_ids
        )

    def aborts(self, request_ids: Sequence[str]) -> Iterable[tuple[Any, Any]]:
        for request_id in request_ids:
            yield pb.AbortRequest(request_id=request_id), pb.AbortResponse

    async def own_health(self, server: Server) -> str:
        answer = await server.ask("HealthCheck", pb.HealthCheckRequest(), pb.HealthCheckResponse)
        return "" if answer.status == "OK" else answer.status or "it does not say that it is well"

    async def describe(self, server: Server) -> ServerFacts:
        model = await server.ask("GetModelInfo", pb.GetModelInfoRequest(), pb.GetModelInfoResponse)
        info = await server.ask("GetServerInfo", pb.GetServerInfoRequest(), pb.GetServerInfoResponse)
        return ServerFacts(
            model=model.model_id,
            identity=(model.model_id, model.vocab_size, model.num_layers, model.hidden_size),
            engine_version=info.version,
            context_length=model.max_seq_len,
            vocabulary_size=model.vocab_size,
            whole_vocabulary=False,
            max_sequences=model.max_batch_size,
        )

    async def load(self, server: Server) -> ServerLoad | None:
        del server
        return None


def _sampling_config(generation: Generation) -> Any:
    sampling = generation.sampling
    config = pb.SamplingConfig(
        beam_width=1,
        num_return_sequences=1,
        top_p=or_neutral(sampling, "top_p", 1.0),
        repetition_penalty=or_neutral(sampling, "repetition_penalty", 1.0),
        presence_penalty=or_neutral(sampling, "presence_penalty", 0.0),
        frequency_penalty=or_neutral(sampling, "frequency_penalty", 0.0),
    )
    temperature = or_neutral(sampling, "temperature", 1.0)
    if temperature == 0:
        config.top_k = 1  # not every backend divides by a temperature of 0
    else:
        config.temperature = temperature
        if top_k := int(or_neutral(sampling, "top_k", 0)):
            config.top_k = top_k
    if sampling.HasField("min_p"):
        config.min_p = sampling.min_p
    if least := least_tokens(generation):
        config.min_tokens = least
    if sampling.HasField("seed"):
        emitted = len(generation.token_ids) - generation.prompt_tokens
        config.seed = resumed_seed(sampling.seed, emitted)
    return config


def _logprobs(said: Any) -> list[TokenLogprob]:
    return [
        TokenLogprob(one.token_id, one.logprob, [(top.token_id, top.logprob) for top in one.top_logprobs])
        for one in said
    ]
