"""A worker attached to an engine server of somebody else's: a scripted one, over the published protocol."""

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from smg_grpc_proto.generated import common_pb2 as smg

from tests.certificates import Authority
from tests.contract.engine_server import Script, answer, engine_server
from tests.contract.worker_process import TIMEOUT_S, Gateway, WorkerProcess, running_worker, spec
from tokenfleet.core.blocks import block_hashes
from tokenfleet.v1 import common_pb2, worker_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

State = worker_pb2.ResidentModel
Stage = common_pb2.LoadProgress
FAILED = common_pb2.FINISH_REASON_FAILED
STOP = common_pb2.FINISH_REASON_STOP
LENGTH = common_pb2.FINISH_REASON_LENGTH
PROMPT = list(range(2_000, 2_040))


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port on which nobody listens; held by a socket that does not, so that nobody else gets it."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker() -> AsyncIterator[WorkerProcess]:
    """One for all tests: it attaches to each one's server, and lets go of it."""
    async with running_worker("--name", "w", "--engines", "remote") as process:
        yield process


@asynccontextmanager
async def attached(worker: WorkerProcess, address: str, **arguments: Any) -> AsyncIterator[Gateway]:
    answers = await worker.load(spec("remote", address=address, **arguments))
    assert answers[-1].progress.stage == Stage.STAGE_READY, answers[-1]
    gateway = await worker.connect()
    try:
        yield gateway
        assert gateway.problems == []
    finally:
        await worker.disconnect()
        await worker.unload()


async def until(worker: WorkerProcess, holds: Callable[[State], bool]) -> State:
    """The first description of the model for which that holds."""
    call = worker.watch(min_interval_ms=1)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            async for response in call:
                for model in response.info.models:
                    if holds(model):
                        return model
    finally:
        call.cancel()
    raise AssertionError("the worker stopped telling")


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not holds():
            await asyncio.sleep(0.01)


async def refusal(worker: WorkerProcess, address: str, **arguments: Any) -> common_pb2.Failure:
    """Why a load fails."""
    answers = await worker.load(spec("remote", address=address, **arguments))
    assert answers[-1].progress.stage == Stage.STAGE_FAILED
    return answers[-1].progress.failure


@pytest.mark.parametrize("dialect", ["vllm", "trtllm"])
async def test_answers_come_whole_in_both_dialects(worker: WorkerProcess, dialect: str) -> None:
    script = Script()
    async with (
        engine_server(script, dialect=dialect) as address,
        attached(worker, address, dialect=dialect) as gateway,
    ):
        streams = [gateway.submit([*PROMPT, extra], 30) for extra in range(12)]
        for extra, stream in enumerate(streams):
            assert (await stream.ended()).finish_reason == LENGTH
            assert stream.ids == answer([*PROMPT, extra], 30)
        first = await gateway.complete(PROMPT, 4)
        rest = await gateway.complete(PROMPT, 6, generated=first.ids, attempt=2)
        assert first.ids + rest.ids == answer(PROMPT, 10)


@pytest.mark.parametrize("dialect", ["vllm", "trtllm"])
async def test_an_answer_that_ends_by_itself_ends_before_its_end_token(
    worker: WorkerProcess, dialect: str
) -> None:
    script = Script(end_after=5)
    async with (
        engine_server(script, dialect=dialect) as address,
        attached(worker, address, dialect=dialect) as gateway,
    ):
        stream = await gateway.complete(PROMPT, 30)
        assert stream.terminal is not None
        assert (stream.terminal.finish_reason, stream.ids) == (STOP, answer(PROMPT, 5))


@pytest.mark.parametrize("dialect", ["vllm", "trtllm"])
async def test_sampling_parameters_and_logprobs_travel(worker: WorkerProcess, dialect: str) -> None:
    script = Script()
    async with (
        engine_server(script, dialect=dialect) as address,
        attached(worker, address, dialect=dialect) as gateway,
    ):
        sampling = {"temperature": 0.5, "seed": 7, "logprobs": 2, "json_schema": "{}", "min_tokens": 3}
        stream = await gateway.complete(PROMPT, 5, sampling=sampling)
        told = [record.token_id for record in stream.logprobs]
        assert told == stream.ids[: len(told)]
        assert len(told) >= 4
        assert stream.logprobs[0].logprob == pytest.approx(-0.5)
        assert stream.logprobs[0].top[0].token_id == stream.ids[0]
        asked = script.requests[-1]
        config = asked.sampling_params if dialect == "vllm" else asked.sampling_config
        assert (config.temperature, config.min_tokens) == (0.5, 3)
        assert config.HasField("seed")


async def test_what_the_server_is_becomes_the_models_facts(worker: WorkerProcess) -> None:
    async with engine_server(Script()) as address, attached(worker, address):
        model = await until(worker, lambda model: model.state == State.STATE_READY)
        assert (model.fingerprint.engine, model.fingerprint.engine_version) == ("vllm", "0.0.scripted")
        assert model.fingerprint.dtype == "bfloat16"
        assert (model.max_sequences, model.context_length, model.kv_blocks_total) == (8, 2_048, 2_000)
        assert sorted(model.features) == ["json_schema", "logprobs", "min_tokens", "seed"]


async def test_a_cancelled_sequence_is_aborted_on_the_server(worker: WorkerProcess) -> None:
    script = Script()
    async with engine_server(script) as address, attached(worker, address) as gateway:
        stream = gateway.submit(PROMPT, 2_000)
        await stream.tokens(2)
        gateway.cancel(stream)
        await stream.ended()
        asked = script.requests[-1].request_id
        await eventually(lambda: script.hung_up == [asked] and script.aborted == [asked])
        load = (await worker.load_sample()).models[0]
        assert (load.running, load.waiting, load.kv_blocks_used) == (0, 0, 0)


async def test_a_request_that_the_server_rejects_is_the_callers_fault_alone(worker: WorkerProcess) -> None:
    script = Script()
    async with engine_server(script) as address, attached(worker, address) as gateway:
        running = gateway.submit(PROMPT, 60)
        await running.tokens(1)
        script.reject_with = (grpc.StatusCode.INVALID_ARGUMENT, "no such thing")
        rejected = await gateway.complete(PROMPT, 5)
        assert rejected.terminal is not None
        assert rejected.terminal.failure.reason == common_pb2.REASON_INVALID_ARGUMENT
        assert "no such thing" in rejected.terminal.failure.message
        script.reject_with = (grpc.StatusCode.INTERNAL, "one of those days")
        broken = await gateway.complete(PROMPT, 5)
        assert broken.terminal is not None
        assert broken.terminal.failure.reason == common_pb2.REASON_ENGINE_FAILED
        assert (await running.ended()).finish_reason == LENGTH
        assert running.ids == answer(PROMPT, 60)


async def test_a_killed_server_fails_its_sequences_and_is_attached_to_again(
    worker: WorkerProcess, free_port: int
) -> None:
    async def start() -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.contract.engine_server", str(free_port)),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert await process.stdout.readline()
        return process

    server = await start()
    try:
        async with attached(worker, f"127.0.0.1:{free_port}") as gateway:
            streams = [gateway.submit([*PROMPT, extra], 1_500) for extra in range(3)]
            for stream in streams:
                await stream.tokens(3)
            down = asyncio.create_task(until(worker, lambda model: model.HasField("failure")))
            server.send_signal(signal.SIGKILL)
            for stream in streams:
                terminal = await stream.ended()
                assert (terminal.finish_reason, terminal.failure.reason) == (
                    FAILED,
                    common_pb2.REASON_ENGINE_FAILED,
                )
                assert "lost the engine server" in terminal.failure.message
            assert (await down).state == State.STATE_LOADING
            refused = await gateway.complete(PROMPT, 3)
            assert refused.terminal is not None
            assert refused.terminal.failure.reason == common_pb2.REASON_NOT_RESIDENT
            await server.wait()
            server = await start()
            await until(worker, lambda model: model.state == State.STATE_READY)
            first = streams[0]
            rest = await gateway.complete([*PROMPT, 0], 5, generated=first.ids, attempt=2)
            assert first.ids + rest.ids == answer([*PROMPT, 0], len(first.ids) + 5)
            assert gateway.problems == []
    finally:
        if server.returncode is None:
            server.kill()
        await server.wait()


async def test_a_server_that_makes_no_tokens_is_given_up_as_wedged(worker: WorkerProcess) -> None:
    script = Script()
    async with engine_server(script) as address, attached(worker, address, stall_timeout_s=1.5) as gateway:
        stream = gateway.submit(PROMPT, 100)
        await stream.tokens(3)
        script.stuck = True
        terminal = await stream.ended()
        assert terminal.failure.reason == common_pb2.REASON_ENGINE_FAILED
        assert "wedged" in terminal.failure.message
        script.stuck = False
        await until(worker, lambda model: model.state == State.STATE_READY)
        assert (await gateway.complete(PROMPT, 3)).ids == answer(PROMPT, 3)


async def test_a_server_that_says_it_is_not_serving_any_more_is_lost(worker: WorkerProcess) -> None:
    script = Script()
    async with engine_server(script) as address, attached(worker, address, health_interval_s=0.1) as gateway:
        stream = gateway.submit(PROMPT, 1_900)
        await stream.tokens(1)
        script.serving = False
        assert (await stream.ended()).failure.reason == common_pb2.REASON_ENGINE_FAILED
        script.serving = True
        await until(worker, lambda model: model.state == State.STATE_READY)


@pytest.mark.parametrize("dialect", ["vllm", "trtllm"])
async def test_the_load_waits_until_the_server_can_serve(worker: WorkerProcess, dialect: str) -> None:
    """Its own health check says from the start that all is well."""
    script = Script(serving=False)
    async with (
        engine_server(script, dialect=dialect) as address,
    ):
        entry = spec("remote", address=address, dialect=dialect)
        loading = asyncio.create_task(worker.load(entry))
        done, _ = await asyncio.wait((loading,), timeout=0.6)
        assert not done
        assert script.requests == []
        script.serving = True
        assert (await loading)[-1].progress.stage == Stage.STAGE_READY
        await worker.unload()


async def test_a_server_that_never_comes_ends_the_load_with_the_reason(
    worker: WorkerProcess, free_port: int
) -> None:
    failure = await refusal(worker, f"127.0.0.1:{free_port}", attach_timeout_s=0.5)
    assert failure.reason == common_pb2.REASON_LOAD_FAILED
    assert f"no engine server at 127.0.0.1:{free_port} within 0.5 s: UNAVAILABLE" in failure.message
    async with engine_server(Script(serving=False)) as address:
        assert "not serving" in (await refusal(worker, address, attach_timeout_s=0.5)).message
        wrong = await refusal(worker, address, attach_timeout_s=0.5, dialect="trtllm")
        assert "serves no trtllm.TrtllmService: is `dialect` right?" in wrong.message


async def test_a_server_with_another_model_is_refused(worker: WorkerProcess) -> None:
    async with engine_server(Script(model="large")) as address:
        failure = await refusal(worker, address, model="small")
        assert "serves 'large'" in failure.message
        assert "wants 'small'" in failure.message
    async with engine_server(Script(vocabulary=32_000)) as address:
        failure = await refusal(worker, address)
        assert "has 32000 tokens" in failure.message
        assert "do not belong together" in failure.message


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"address": "nowhere"}, "argument address: Value error, must be HOST:PORT"),
        ({"address": "h:1", "adress": "h:1"}, "argument adress is unknown; did you mean address?"),
        ({"address": "h:1", "dialect": "sglang"}, "argument dialect"),
        ({"address": "h:1", "token_file": "/t"}, "token_file needs tls"),
        ({"address": "h:1", "tls": {"ca_file": "/no/such/file"}}, "cannot read /no/such/file"),
        ({"address": "h:1", "tls": {"cert_file": "/c"}}, "belong together"),
    ],
)
async def test_wrong_arguments_are_named(
    worker: WorkerProcess, arguments: dict[str, Any], complaint: str
) -> None:
    assert complaint in (await refusal(worker, **arguments)).message


async def test_a_server_behind_tls_that_wants_a_certificate_and_a_token(
    worker: WorkerProcess, tmp_path: Path
) -> None:
    authority = Authority()
    cert, key = authority.write(tmp_path, "engine", "engine.example")
    own_cert, own_key = authority.write(tmp_path, "worker", "worker.example")
    ca = authority.write_ca(tmp_path)
    token = tmp_path / "token"
    token.write_text("sesame\n")
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), cert.read_bytes())], ca.read_bytes(), require_client_auth=True
    )
    tls = {
        "ca_file": str(ca),
        "cert_file": str(own_cert),
        "key_file": str(own_key),
        "server_name": "engine.example",
    }
    async with engine_server(Script(token="sesame"), credentials=credentials) as address:
        async with attached(worker, address, tls=tls, token_file=str(token)) as gateway:
            assert (await gateway.complete(PROMPT, 3)).ids == answer(PROMPT, 3)
        anonymous = await refusal(
            worker, address, tls={**tls, "cert_file": None, "key_file": None}, attach_timeout_s=1
        )
        assert "UNAVAILABLE" in anonymous.message
        without = await refusal(worker, address, tls=tls, attach_timeout_s=0.5)
        assert "UNAUTHENTICATED" in without.message


def stored(names: Sequence[int], parent: int | None, ids: Sequence[int], size: int) -> smg.KvCacheEvent:
    blocks = [
        smg.KvBlock(block_hash=name, token_ids=ids[at * size : (at + 1) * size], block_size=size)
        for at, name in enumerate(names)
    ]
    return smg.KvCacheEvent(stored=smg.KvBlocksStored(blocks=blocks, parent_block_hash=parent))


class Believed:
    """What a router would believe to be cached on the worker."""

    def __init__(self, worker: WorkerProcess) -> None:
        self._call = worker.watch(min_interval_ms=1, cache_events=True)
        self.hashes: set[int] = set()
        self._following = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        async for response in self._call:
            self.hashes |= set(response.cache_snapshot.hashes)
            for event in response.cache_events:
                if event.cleared:
                    self.hashes.clear()
                self.hashes |= set(event.stored)
                self.hashes -= set(event.removed)

    def close(self) -> None:
        self._call.cancel()
        self._following.cancel()


async def test_cache_events_become_canonical_and_a_gap_begins_anew(worker: WorkerProcess) -> None:
    script = Script(publishes=True)
    ids = list(range(3_000, 3_256))
    canonical = block_hashes(ids, 16)
    async with engine_server(script) as address, attached(worker, address):
        model = await until(worker, lambda model: model.state == State.STATE_READY)
        assert "cache_events" in model.features
        assert script.flushes == 1, "what the cache held before cannot be known"
        believed = Believed(worker)
        script.publish(40, stored([-1], None, ids[:128], 128))
        await eventually(lambda: believed.hashes == set(canonical[:8]))
        script.publish(41, stored([-2], -1, ids[128:], 128))
        await eventually(lambda: believed.hashes == set(canonical))
        script.publish(41, stored([-2], -1, ids[128:], 128))  # told twice: once is enough
        script.publish(42, smg.KvCacheEvent(removed=smg.KvBlocksRemoved(block_hashes=[-2])))
        await eventually(lambda: believed.hashes == set(canonical[:8]))
        script.publish(44, stored([-3], None, ids[:128], 128))
        await eventually(lambda: believed.hashes == set() and script.flushes == 2)
        script.publish(45, stored([-3], None, ids[:128], 128))
        await eventually(lambda: believed.hashes == set(canonical[:8]))
        for queue in script.subscribers:
            queue.put_nowait(None)  # DATA_LOSS
        await eventually(lambda: believed.hashes == set() and script.flushes == 3)
        script.publish(1, stored([-4], None, ids[:128], 128))
        await eventually(lambda: believed.hashes == set(canonical[:8]))
        believed.close()
