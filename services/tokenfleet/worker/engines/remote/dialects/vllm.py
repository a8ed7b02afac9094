"""`vllm.grpc.engine.VllmEngine`, as `vllm serve --grpc` offers it.

It streams what is new in chunks; the message behind the last chunk repeats that chunk's ids and is read for
its reason only. An answer that ends by itself has its end token in the last chunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from smg_grpc_proto import vllm_engine_pb2 as pb

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
from tokenfleet.worker.engines.vllm.request import bias_of

_SEED_MASK = 0x7FFF_FFFF  # the service's seeds are signed, of 32 bits


class VllmDialect:
    engine = "vllm"
    service = "vllm.grpc.engine.VllmEngine"
    features = frozenset({"json_schema", "logprobs", "min_tokens", "seed"})
    generate_request = pb.GenerateRequest
    generate_response = pb.GenerateResponse

    def request(self, generation: Generation, request_id: str) -> Any:
        sampling = generation.sampling
        params = pb.SamplingParams(
            temperature=or_neutral(sampling, "temperature", 1.0),
            top_p=or_neutral(sampling, "top_p", 1.0),
            top_k=int(or_neutral(sampling, "top_k", 0)),
            min_p=or_neutral(sampling, "min_p", 0.0),
            repetition_penalty=or_neutral(sampling, "repetition_penalty", 1.0),
            presence_penalty=or_neutral(sampling, "presence_penalty", 0.0),
            frequency_penalty=or_neutral(sampling, "frequency_penalty", 0.0),
            max_tokens=generation.max_tokens,
            min_tokens=least_tokens(generation),
            ignore_eos=sampling.ignore_eos,
            logit_bias=dict(bias_of(generation)),
            n=1,
        )
        if sampling.HasField("seed"):
            emitted = len(generation.token_ids) - generation.prompt_tokens
            params.seed = resumed_seed(sampling.seed, emitted) & _SEED_MASK
        if sampling.HasField("logprobs"):
            params.logprobs = sampling.logprobs
        if schema := json_schema(generation):
            params.json_schema = schema
        return pb.GenerateRequest(
            request_id=request_id,
            tokenized=pb.TokenizedInput(input_ids=generation.token_ids),
            sampling_params=params,
            stream=True,
        )

    def read(self, message: Any) -> Piece:
        if message.HasField("chunk"):
            chunk = message.chunk
            logprobs = _logprobs(chunk.output_logprobs) if chunk.HasField("output_logprobs") else ()
            return Piece(chunk.token_ids, "", chunk.cached_tokens, logprobs)
        complete = message.complete
        return Piece((), complete.finish_reason, complete.cached_tokens)

    def aborts(self, request_ids: Sequence[str]) -> Iterable[tuple[Any, Any]]:
        yield pb.AbortRequest(request_ids=request_ids), pb.AbortResponse

    async def own_health(self, server: Server) -> str:
        answer = await server.ask("HealthCheck", pb.HealthCheckRequest(), pb.HealthCheckResponse)
        return "" if answer.healthy else answer.message or "it says that it is not healthy"

    async def describe(self, server: Server) -> ServerFacts:
        model = await server.ask("GetModelInfo", pb.GetModelInfoRequest(), pb.GetModelInfoResponse)
        info = await server.ask("GetServerInfo", pb.GetServerInfoRequest(), pb.GetServerInfoResponse)
        loads = await server.ask("GetLoads", pb.GetLoadsRequest(), pb.GetLoadsResponse)
        ranks = loads.loads
        return ServerFacts(
            model=model.served_model_name or model.model_path,
            identity=(
                model.model_path,
                model.model_type,
                sorted(model.architectures),
                model.vocab_size,
                info.kv_cache_dtype,
            ),
            engine_version=loads.version,
            dtype=info.model_dtype.removeprefix("torch."),
            context_length=model.max_context_length,
            vocabulary_size=model.vocab_size,
            max_sequences=sum(rank.max_running_requests for rank in ranks) or info.max_num_seqs,
            kv_tokens=sum(rank.max_total_num_tokens for rank in ranks),
            end_ids=model.eos_token_ids,
        )

    async def load(self, server: Server) -> ServerLoad | None:
        answer = await server.ask("GetLoads", pb.GetLoadsRequest(), pb.GetLoadsResponse)
        ranks = answer.loads
        return ServerLoad(
            sum(rank.num_running_reqs for rank in ranks),
            sum(rank.num_waiting_reqs for rank in ranks),
            sum(rank.token_usage for rank in ranks) / max(1, len(ranks)),
        )


def _logprobs(said: Any) -> list[TokenLogprob]:
    records = []
    tops = said.top_logprobs
    for index, (token, logprob) in enumerate(zip(said.token_ids, said.token_logprobs, strict=True)):
        top = tops[index] if index < len(tops) else None
        pairs = [] if top is None else list(zip(top.token_ids, top.values, strict=True))
        records.append(TokenLogprob(token, logprob, pairs))
    return records
