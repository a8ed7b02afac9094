"""The model-loader over the wire: warm and lazy loads on scripted workers, its catalog, its memory."""

import asyncio
import contextlib
import urllib.request
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.scripted_worker import Resident, ScriptedWorker, until
from tests.contract.service_process import ServiceProcess, launch, running
from tokenfleet.cli.local_fleet.store import server_binary
from tokenfleet.runtime.catalog import CatalogWatch
from tokenfleet.runtime.errors import FleetError, from_rpc_error
from tokenfleet.runtime.grpc_host import open_channel
from tokenfleet.runtime.roles import MODEL_LOADER
from tokenfleet.v1 import common_pb2, model_loader_pb2, model_loader_pb2_grpc, worker_pb2

Stage = common_pb2.LoadProgress
WARM, LAZY = "warm-model", "lazy-model"


def entry(name: str, policy: str = "lazy", **fields: object) -> dict[str, object]:
    return {
        "name": name,
        "source": "file:///models/m.gguf",
        "context_length": 4096,
        "policy": policy,
        "engines": [{"engine": "sim", "arguments": {"max_sequences": 8}}],
        **fields,
    }


@dataclass
class Harness:
    loader: ServiceProcess
    catalog: Path
    stub: Any

    async def ensure(
        self, model: str, into: list[model_loader_pb2.EnsureLoadedResponse] | None = None, **fields: Any
    ) -> list[model_loader_pb2.EnsureLoadedResponse]:
        """All progress of one call, also as it comes."""
        request = model_loader_pb2.EnsureLoadedRequest(model=model, **fields)
        responses = [] if into is None else into
        async with asyncio.timeout(20):
            async for response in self.stub.EnsureLoaded(request):
                responses.append(response)
        return responses

    async def residency(self, model: str) -> model_loader_pb2.ModelResidency:
        response = await self.stub.ListResidency(model_loader_pb2.ListResidencyRequest())
        found: model_loader_pb2.ModelResidency = next(m for m in response.models if m.spec.name == model)
        return found

    async def knows(self, model: str, states: Iterable[str]) -> None:
        """Waits until the loader sees the model in these states on its workers."""
        async with asyncio.timeout(10):
            while sorted(place.state for place in (await self.residency(model)).places) != sorted(states):
                await asyncio.sleep(0.01)


def write(path: Path, *entries: object) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(yaml.safe_dump({"models": list(entries)}))
    fresh.replace(path)


@asynccontextmanager
async def loader_with(
    tmp_path: Path,
    workers: Sequence[ScriptedWorker],
    *flags: str,
    entries: Sequence[object] | None = None,
    named: str | None = None,
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[Harness]:
    """`named`: what the loader is told of the workers instead of their addresses."""
    catalog = tmp_path / "catalog.yaml"
    write(catalog, *(entries if entries is not None else (entry(WARM, "warm"), entry(LAZY))))
    async with AsyncExitStack() as stack:
        for worker in workers:
            if not worker.target:
                await worker.start()
            stack.push_async_callback(worker.die)
        targets = named or ",".join(worker.target for worker in workers)
        loader = await stack.enter_async_context(
            running("model_loader", "--catalog", str(catalog), "--workers", targets, *flags, env=env)
        )
        channel = await stack.enter_async_context(open_channel(loader.address, MODEL_LOADER))
        yield Harness(loader, catalog, model_loader_pb2_grpc.ModelLoaderStub(channel))


async def test_warm_models_are_loaded_everywhere_and_again_on_a_worker_that_comes_back(
    tmp_path: Path,
) -> None:
    a, b = ScriptedWorker("a"), ScriptedWorker("b")
    async with loader_with(tmp_path, (a, b)) as harness:
        await harness.loader.ready("tokenfleet.v1.ModelLoader")
        await harness.knows(WARM, ["ready", "ready"])
        assert [len(worker.loads) for worker in (a, b)] == [1, 1]
        assert a.loads[0].engine == "sim"
        assert a.loads[0].spec.engines[0].arguments["max_sequences"] == "8"
        began = asyncio.get_running_loop().time()
        await a.die()
        await harness.knows(WARM, ["ready"])
        await a.start()
        await until(lambda: len(a.loads) == 2)
        assert asyncio.get_running_loop().time() - began < 3
        await harness.knows(WARM, ["ready", "ready"])
        assert [request.spec.name for request in a.loads + b.loads] == [WARM] * 3


async def test_fifty_concurrent_calls_share_one_load_and_all_see_it_through(tmp_path: Path) -> None:
    worker = ScriptedWorker("a")
    async with loader_with(tmp_path, (worker,), entries=[entry(LAZY)]) as harness:
        worker.may_load.clear()
        seen: list[list[model_loader_pb2.EnsureLoadedResponse]] = [[] for _ in range(50)]
        calls = [asyncio.create_task(harness.ensure(LAZY, into=responses)) for responses in seen]
        await until(lambda: all(each and each[-1].progress.bytes_done == 50 for each in seen))
        worker.may_load.set()
        await asyncio.gather(*calls)
        for responses in seen:
            assert responses[-1].progress.stage == Stage.STAGE_READY
            assert responses[-1].worker_id == "a-1"
            assert responses[-2].progress.stage == Stage.STAGE_FETCHING
            assert responses[-2].progress.worker_id == "a-1"
        assert len(worker.loads) == 1
        # who comes afterwards is answered at once
        assert [r.progress.stage for r in await harness.ensure(LAZY)][-1] == Stage.STAGE_READY
        assert len(worker.loads) == 1


async def test_a_wish_made_before_the_workers_are_up_is_met_when_they_are(tmp_path: Path) -> None:
    worker = ScriptedWorker("a")
    await worker.start()
    await worker.die()
    async with loader_with(tmp_path, (worker,)) as harness:
        call = asyncio.create_task(harness.ensure(WARM))
        await harness.loader.logged("worker watch broken")
        await worker.start()
        assert (await call)[-1].progress.stage == Stage.STAGE_READY


async def test_the_engines_own_error_is_told_and_remembered_and_the_load_tried_again(
    tmp_path: Path,
) -> None:
    worker = ScriptedWorker("a")
    worker.load_failure = common_pb2.Failure(
        reason=common_pb2.REASON_LOAD_FAILED, message="tensor blk.0 is missing"
    )
    async with loader_with(tmp_path, (worker,)) as harness:
        failure = (await harness.ensure(WARM))[-1].progress.failure
        assert (failure.reason, failure.message) == (
            common_pb2.REASON_LOAD_FAILED,
            "tensor blk.0 is missing",
        )
        assert failure.retry_after_ms > 0
        residency = await harness.residency(WARM)
        assert residency.quarantine.message == "tensor blk.0 is missing"
        assert [place.state for place in residency.places] == ["failed"]
        # warm: it comes by itself, with pauses
        worker.load_failure = None
        await harness.knows(WARM, ["ready"])


async def test_a_lazy_load_is_taken_over_by_another_worker_when_the_first_dies(tmp_path: Path) -> None:
    a, b = ScriptedWorker("a"), ScriptedWorker("b")
    async with loader_with(tmp_path, (a, b), entries=[entry(LAZY)]) as harness:
        await harness.loader.logged("worker connected", 2)
        for worker in (a, b):
            worker.may_load.clear()
        call = asyncio.create_task(harness.ensure(LAZY))
        await until(lambda: a.loads or b.loads)
        first, second = (a, b) if a.loads else (b, a)
        await first.die()
        await until(lambda: second.loads)
        second.may_load.set()
        last = (await call)[-1]
        assert (last.progress.stage, last.worker_id) == (Stage.STAGE_READY, second.worker_id)
        first.may_load.set()


async def test_nobody_who_can_is_said_at_once(tmp_path: Path) -> None:
    worker = ScriptedWorker("a", engines=["llamacpp"])
    async with loader_with(tmp_path, (worker,), entries=[entry(LAZY)]) as harness:
        await harness.loader.logged("worker connected")
        failure = (await harness.ensure(LAZY))[-1].progress.failure
        assert failure.reason == common_pb2.REASON_NO_WORKER
        assert "sim" in failure.message


async def test_unknown_models_are_a_typed_error(tmp_path: Path) -> None:
    async with loader_with(tmp_path, ()) as harness:
        with pytest.raises(Exception, match="nonsense") as raised:
            await harness.ensure("nonsense")
        error = from_rpc_error(raised.value)  # type: ignore[arg-type]
        assert (error.reason, error.field) == (common_pb2.REASON_MODEL_NOT_FOUND, "model")


async def test_a_model_that_was_unloaded_stays_away_until_somebody_wants_it(tmp_path: Path) -> None:
    worker = ScriptedWorker("a")
    async with loader_with(tmp_path, (worker,)) as harness:
        await harness.knows(WARM, ["ready"])
        worker.sample(WARM, running=1)
        request = model_loader_pb2.UnloadRequest(model=WARM)
        (refused,) = [response async for response in harness.stub.Unload(request)]
        assert refused.failure.reason == common_pb2.REASON_BUSY
        request.force = True
        (done,) = [response async for response in harness.stub.Unload(request)]
        assert (done.done, done.worker_id, done.freed_bytes) == (True, "a-1", 1000)
        assert worker.unloads[-1].residency_epoch == 1
        assert not worker.unloads[-1].if_idle
        await harness.knows(WARM, [])
        worker.tell()
        await harness.knows(WARM, [])
        assert len(worker.loads) == 1
        assert (await harness.ensure(WARM))[-1].progress.stage == Stage.STAGE_READY
        assert len(worker.loads) == 2


async def test_a_draining_worker_is_left_alone(tmp_path: Path) -> None:
    worker = ScriptedWorker("a")
    worker.info.state = worker_pb2.WORKER_STATE_DRAINING
    async with loader_with(tmp_path, (worker,), "--no-worker-timeout-s", "0") as harness:
        await harness.loader.logged("worker connected")
        assert (await harness.ensure(WARM))[-1].progress.failure.reason == common_pb2.REASON_NO_WORKER
        assert not worker.loads


async def test_the_catalog_is_followed_through_changes_bad_files_and_the_loaders_absence(
    tmp_path: Path,
) -> None:
    async with loader_with(tmp_path, (), "--catalog-poll-s", "0.05") as harness:
        watch = CatalogWatch(harness.loader.address)
        with pytest.raises(FleetError, match="has not arrived"):
            watch.get(WARM)
        changes: list[int] = []
        watch.on_change.append(lambda: changes.append(watch.revision))
        await watch.start()
        try:
            async with asyncio.timeout(10):
                await watch.first.wait()
            assert watch.get(WARM).policy == common_pb2.ModelSpec.POLICY_WARM
            with pytest.raises(FleetError, match=f"nonsense.*{LAZY}"):
                watch.get("nonsense")
            write(harness.catalog, entry(WARM, "hot"))
            (record, *_) = await harness.loader.logged("catalog not taken: the last good one stays")
            assert "policy" in record["problem"]
            write(harness.catalog, entry(WARM, "warm"), entry("third"))
            await until(lambda: set(watch.models) == {WARM, "third"})
            assert changes == [1, 2]
            address = harness.loader.address
            await harness.loader.kill()
            assert watch.get("third").name == "third"
            write(harness.catalog, entry("fourth"))
            flags = ("--catalog", str(harness.catalog))
            async with running("model_loader", *flags, listen=address):
                await until(lambda: set(watch.models) == {"fourth"})
        finally:
            await watch.stop()


async def test_pins_and_last_use_are_listed(tmp_path: Path) -> None:
    worker = ScriptedWorker("a")
    async with loader_with(tmp_path, (worker,)) as harness:
        await harness.knows(WARM, ["ready"])
        assert (await harness.residency(WARM)).pinned
        assert not (await harness.residency(LAZY)).pinned
        await harness.stub.Pin(model_loader_pb2.PinRequest(model=LAZY, pinned=True))
        assert (await harness.residency(LAZY)).pinned
        await harness.knows(LAZY, ["ready"])
        assert not (await harness.residency(WARM)).last_used_unix_ms
        worker.sample(WARM, running=2)
        async with asyncio.timeout(5):
            while not (await harness.residency(WARM)).last_used_unix_ms:
                await asyncio.sleep(0.01)
        page = await asyncio.to_thread(_get, harness.loader.metrics)
        assert 'tokenfleet_model_loader_resident_models{state="ready"} 2.0' in page
        assert 'tokenfleet_model_loader_loads_total{outcome="ready"} 2.0' in page
        assert "tokenfleet_model_loader_load_seconds_count 2.0" in page


async def test_a_restarted_loader_joins_what_is_under_way_and_remembers_what_a_store_kept(
    tmp_path: Path, valkey: str
) -> None:
    worker = ScriptedWorker("a")
    flags = ("--store", valkey)
    async with loader_with(tmp_path, (worker,), *flags) as harness:
        await harness.knows(WARM, ["ready"])
        await harness.stub.Pin(model_loader_pb2.PinRequest(model=LAZY, pinned=True))
        await harness.knows(LAZY, ["ready"])
        worker.holds(LAZY, Resident.STATE_LOADING)
        assert await harness.loader.stop() == 0
        async with (
            running(
                "model_loader", *flags, "--catalog", str(harness.catalog), "--workers", worker.target
            ) as second,
            open_channel(second.address, MODEL_LOADER) as channel,
        ):
            again = Harness(second, harness.catalog, model_loader_pb2_grpc.ModelLoaderStub(channel))
            assert (await again.residency(LAZY)).pinned
            await second.logged("catalog", revision=1)
            call = asyncio.create_task(again.ensure(LAZY))
            await again.knows(LAZY, ["loading"])
            worker.holds(LAZY, Resident.STATE_READY)
            assert (await call)[-1].worker_id == "a-1"
            assert [request.spec.name for request in worker.loads] == [WARM, LAZY]


async def test_a_store_that_is_not_there_stops_nothing(tmp_path: Path) -> None:
    worker = ScriptedWorker("a")
    flags = ("--store", f"unix://{tmp_path}/nowhere.sock")
    async with loader_with(tmp_path, (worker,), *flags) as harness:
        await harness.loader.logged("store away: history is kept in this process only")
        await harness.knows(WARM, ["ready"])


async def test_a_bad_catalog_ends_the_start_with_every_problem_named(tmp_path: Path) -> None:
    catalog = tmp_path / "bad.yaml"
    write(catalog, entry(WARM, "hot"), entry(LAZY, contxt=1))
    service = await launch("model_loader", "--catalog", str(catalog))
    assert await service.ended() == 1
    told = "\n".join(str(record["event"]) for record in service.log)
    for words in (f"{catalog}: model '{WARM}': policy", f"{catalog}: model '{LAZY}': contxt"):
        assert words in told


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[str]:
    """A real store on a socket of its own."""
    binary = server_binary()
    socket = tmp_path / "store.sock"
    process = await asyncio.create_subprocess_exec(
        *(str(binary), "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(tmp_path)),
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        await until(socket.exists)
        yield f"unix://{socket}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as response:
        return str(response.read().decode())
