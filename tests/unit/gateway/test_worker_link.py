"""Steps become frames: in order, merged only where they must be, for the right attempt."""

import asyncio
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from tokenfleet.gateway.lanes import Mould
from tokenfleet.gateway.lanes import cast as cast_frame
from tokenfleet.gateway.metrics import GatewayMetrics
from tokenfleet.gateway.packed_prompt import PackedPrompt
from tokenfleet.gateway.sequence import Generation, Sequence, Sink
from tokenfleet.gateway.worker_link import WorkerLink
from tokenfleet.gateway.write_batch import WriteBatch
from tokenfleet.runtime.links import Link
from tokenfleet.v1 import common_pb2 as pb
from tokenfleet.v1 import router_pb2, worker_pb2

MOULD: Mould = (b"<", b">\r\n", 2)


class FakeLink:
    peer = "worker"
    writable = True

    def __init__(self) -> None:
        self.sent: list[worker_pb2.ServeRequest] = []

    def send(self, message: worker_pb2.ServeRequest) -> None:
        self.sent.append(message)


class FakeTransport:
    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)


class FakeSink:
    def __init__(self) -> None:
        self.deltas: list[tuple[int, str, list[int]]] = []

    def delta(self, index: int, text: str, ids: list[int]) -> None:
        self.deltas.append((index, text, ids))


class Bench:
    def __init__(self) -> None:
        self.metrics = GatewayMetrics(CollectorRegistry())
        self.transport = FakeTransport()
        self.sink = FakeSink()
        link = cast(Link[worker_pb2.ServeRequest], FakeLink())
        self.link = WorkerLink(link, self.metrics, WriteBatch())

    def sequence(self, *, lane: bool) -> Sequence:
        """A running one; its slots are given out in the order of these calls."""
        generation = Generation(
            context=pb.RequestContext(),
            model="m",
            sampling=pb.SamplingParams(),
            deadline=asyncio.get_running_loop().time() + 60,
            prompt=PackedPrompt(),
            prompt_tokens=1,
        )
        sequence = Sequence(generation, 0, 100, cast(Sink, self.sink), attempt=1)
        self.link.submit(sequence, router_pb2.Placement(worker_id="w"))
        if lane:
            sequence.lane = (cast(asyncio.Transport, self.transport), *MOULD)
        return sequence

    def receive(self, *steps: worker_pb2.StepOutputs) -> None:
        self.link.received([worker_pb2.ServeResponse(step=step) for step in steps])


@pytest.fixture
async def bench() -> Bench:
    return Bench()


def step(*deltas: tuple[int, str, list[int]], attempt: int = 1, **more: Any) -> worker_pb2.StepOutputs:
    return worker_pb2.StepOutputs(
        slots=[slot for slot, _, _ in deltas],
        attempts=[attempt for _ in deltas],
        token_counts=[len(ids) for _, _, ids in deltas],
        texts=[text for _, text, _ in deltas],
        token_ids=[token for _, _, ids in deltas for token in ids],
        **more,
    )


def framed(*texts: str) -> list[bytes]:
    return [cast_frame(MOULD, text) for text in texts]


async def test_a_lane_gets_frames_and_the_sink_is_not_asked(bench: Bench) -> None:
    sequence = bench.sequence(lane=True)
    bench.receive(step((0, "a", [1])))
    bench.receive(step((0, "bc", [2, 3])))
    assert bench.transport.written == framed("a", "bc")
    assert (sequence.ids, sequence.emitted_chars) == ([1, 2, 3], 3)
    assert not bench.sink.deltas


async def test_a_token_without_text_makes_no_frame_and_counts(bench: Bench) -> None:
    sequence = bench.sequence(lane=True)
    bench.receive(step((0, "", [1])))
    assert not bench.transport.written
    assert sequence.ids == [1]
    assert bench.metrics.completion_tokens == 1


async def test_without_a_lane_the_sink_is_told(bench: Bench) -> None:
    sequence = bench.sequence(lane=False)
    bench.receive(step((0, "a", [1])), step((0, "", [2])))
    assert bench.sink.deltas == [(0, "a", [1, 2])], "two steps of one read are one delta"
    assert (sequence.ids, sequence.emitted_chars) == ([1, 2], 1)


async def test_steps_of_one_read_merge_only_what_one_sequence_got_twice(bench: Bench) -> None:
    for _ in range(3):
        bench.sequence(lane=True)
    bench.receive(step((0, "a", [1])), step((1, "b", [2])), step((2, "c", [3])))
    assert bench.transport.written == framed("a", "b", "c")
    bench.transport.written.clear()
    bench.receive(step((0, "a", [1]), (1, "b", [2])), step((1, "c", [3])), step((1, "d", [4])))
    assert bench.transport.written == framed("a", "bcd")


async def test_what_is_left_of_an_earlier_attempt_is_dropped(bench: Bench) -> None:
    sequence = bench.sequence(lane=True)
    sequence.attempt = 2
    bench.receive(step((0, "old", [1]), attempt=1))
    bench.receive(step((0, "new", [2]), attempt=2))
    assert bench.transport.written == framed("new")
    assert sequence.ids == [2]


async def test_terminals_come_after_the_tokens_and_free_their_slots(bench: Bench) -> None:
    first = bench.sequence(lane=True)
    terminal = worker_pb2.Terminal(slot=0, attempt=1, finish_reason=pb.FINISH_REASON_STOP)
    bench.receive(step((0, "a", [1])), step(terminals=[terminal]))
    assert first.ended is not None
    assert (await first.ended).finish_reason == pb.FINISH_REASON_STOP
    assert first.ids == [1]
    assert bench.sequence(lane=True).slot == 0, "the slot is free again"


async def test_each_delta_but_an_attempts_first_is_a_gap(bench: Bench) -> None:
    for _ in range(2):
        bench.sequence(lane=True)
    bench.receive(step((0, "a", [1]), (1, "a", [1])))
    await asyncio.sleep(0.001)
    bench.receive(step((0, "b", [2]), (1, "b", [2])))
    ((ttft,), (gaps,)) = bench.metrics.ttft.collect(), bench.metrics.inter_token_latency.collect()
    assert [_count(ttft), _count(gaps)] == [2, 2]


def _count(family: Any) -> float:
    (count,) = [sample.value for sample in family.samples if sample.name.endswith("_count")]
    return float(count)
