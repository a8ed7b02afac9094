"""Entries added and removed over the wire, and pins: kept by a real store over a kill of the loader."""

import json
from pathlib import Path

import grpc
import pytest

from tests.contract.scripted_worker import ScriptedWorker, until
from tests.contract.service_process import running
from tests.contract.test_model_loader_residency import LAZY, WARM, Harness, entry, loader_with, valkey
from tokenfleet.runtime.catalog import CatalogWatch
from tokenfleet.runtime.errors import FleetError, from_rpc_error
from tokenfleet.runtime.grpc_host import open_channel
from tokenfleet.runtime.roles import MODEL_LOADER
from tokenfleet.v1 import common_pb2, model_loader_pb2, model_loader_pb2_grpc

__all__ = ["valkey"]  # a fixture

Stage = common_pb2.LoadProgress


async def add(harness: Harness, *, replace: bool = False, **fields: object) -> common_pb2.ModelSpec:
    described = {key: value for key, value in entry("added").items() if key not in fields} | fields
    request = model_loader_pb2.AddModelRequest(entry=json.dumps(described), replace=replace)
    response: model_loader_pb2.AddModelResponse = await harness.stub.AddModel(request)
    return response.spec


async def remove(harness: Harness, model: str) -> None:
    await harness.stub.RemoveModel(model_loader_pb2.RemoveModelRequest(model=model))


def error_of(raised: "pytest.ExceptionInfo[grpc.aio.AioRpcError]") -> FleetError:
    return from_rpc_error(raised.value)


async def test_an_added_model_is_published_loaded_and_taken_out_again(tmp_path: Path) -> None:
    worker = ScriptedWorker("a")
    async with loader_with(tmp_path, (worker,)) as harness:
        watch = CatalogWatch(harness.loader.address)
        await watch.start()
        try:
            assert (await add(harness)).name == "added"
            await until(lambda: "added" in watch.models)
            assert (await harness.residency("added")).added
            assert not (await harness.residency(WARM)).added
            assert (await harness.ensure("added"))[-1].progress.stage == Stage.STAGE_READY
            await remove(harness, "added")
            await until(lambda: set(watch.models) == {WARM, LAZY})
        finally:
            await watch.stop()


async def test_a_bad_entry_is_refused_with_what_is_wrong(tmp_path: Path) -> None:
    async with loader_with(tmp_path, ()) as harness:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await add(harness, polcy="warm")
        error = error_of(raised)
        assert error.reason == common_pb2.REASON_INVALID_ARGUMENT
        assert "did you mean policy" in error.message
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await add(harness, name=WARM)
        assert "catalog file" in error_of(raised).message
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await remove(harness, "added")
        assert error_of(raised).reason == common_pb2.REASON_MODEL_NOT_FOUND


async def test_additions_and_pins_survive_the_loaders_sudden_death(tmp_path: Path, valkey: str) -> None:
    worker = ScriptedWorker("a")
    flags = ("--store", valkey)
    async with loader_with(tmp_path, (worker,), *flags) as harness:
        await add(harness)
        await harness.stub.Pin(model_loader_pb2.PinRequest(model="added", pinned=True))
        await harness.stub.Pin(model_loader_pb2.PinRequest(model=WARM, pinned=False))
        revision = (await _catalog(harness)).revision
        await harness.loader.kill()
        arguments = ("--catalog", str(harness.catalog), "--workers", worker.target)
        async with (
            running("model_loader", *flags, *arguments) as second,
            open_channel(second.address, MODEL_LOADER) as channel,
        ):
            again = Harness(second, harness.catalog, model_loader_pb2_grpc.ModelLoaderStub(channel))
            assert (await again.residency("added")).pinned
            assert (await again.residency("added")).added
            assert not (await again.residency(WARM)).pinned
            assert (await _catalog(again)).revision == revision
            await again.knows("added", ["ready"])  # pinned: it is kept loaded


async def _catalog(harness: Harness) -> model_loader_pb2.WatchCatalogResponse:
    call = harness.stub.WatchCatalog(model_loader_pb2.WatchCatalogRequest())
    try:
        first: model_loader_pb2.WatchCatalogResponse = await anext(aiter(call))
        return first
    finally:
        call.cancel()
