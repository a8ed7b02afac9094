"""Following the models that load at start, against a model-loader that is played."""

from collections.abc import AsyncIterator

import grpc
import pytest

from tokenfleet.cli.loading import follow_warm_models
from tokenfleet.v1 import common_pb2, model_loader_pb2

Progress = common_pb2.LoadProgress
Policy = common_pb2.ModelSpec


def spec(name: str, policy: Policy.Policy.ValueType, engine: str) -> common_pb2.ModelSpec:
    return common_pb2.ModelSpec(
        name=name, policy=policy, engines=[common_pb2.ModelSpec.EngineConfig(engine=engine)]
    )


CATALOG = model_loader_pb2.WatchCatalogResponse(
    models=[
        spec("good", Policy.POLICY_WARM, "sim"),
        spec("bad", Policy.POLICY_WARM, "sim"),
        spec("cold", Policy.POLICY_LAZY, "sim"),
        spec("elsewhere", Policy.POLICY_WARM, "vllm"),
    ]
)


async def watch_catalog(request: bytes, context: object) -> AsyncIterator[bytes]:
    del request, context
    yield CATALOG.SerializeToString()


async def ensure_loaded(
    request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]
) -> AsyncIterator[bytes]:
    model = model_loader_pb2.EnsureLoadedRequest.FromString(request).model
    if model == "bad":
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the file is damaged")
    assert model == "good", f"{model} was not to be loaded"
    for stage in (Progress.STAGE_FETCHING, Progress.STAGE_READY):
        progress = Progress(model=model, stage=stage)
        yield model_loader_pb2.EnsureLoadedResponse(progress=progress).SerializeToString()


@pytest.fixture
async def loader() -> AsyncIterator[str]:
    methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "WatchCatalog": grpc.unary_stream_rpc_method_handler(watch_catalog),
        "EnsureLoaded": grpc.unary_stream_rpc_method_handler(ensure_loaded),
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("tokenfleet.v1.ModelLoader", methods),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


async def test_follows_what_its_engines_load_at_start_and_tells_failures_apart(loader: str) -> None:
    seen: list[common_pb2.LoadProgress] = []
    failures = await follow_warm_models(loader, {"sim"}, seen.append)
    assert set(failures) == {"good", "bad"}
    assert failures["good"] is None
    assert failures["bad"] is not None
    assert failures["bad"].message == "the file is damaged"
    assert [(each.model, each.stage) for each in seen] == [
        ("good", Progress.STAGE_FETCHING),
        ("good", Progress.STAGE_READY),
    ]


async def test_with_nothing_to_load_it_returns_at_once(loader: str) -> None:
    assert await follow_warm_models(loader, {"llamacpp"}, lambda progress: None) == {}
