"""Processor time of one decision: the ask, the choice and the reservation, as the router makes them."""

from __future__ import annotations

import gc
import random
from time import process_time

from tokenfleet.core.queueing import Lane
from tokenfleet.core.scheduling import (
    ModelLoad,
    Phase,
    Placed,
    PredictionSettings,
    ReplicaFacts,
    ReplicaState,
    Request,
    Scheduler,
    SchedulerLimits,
    Step,
    WorkerFacts,
    make_policy,
)
from tokenfleet.core.scheduling.predicted import Predicted
from tokenfleet.core.scheduling.prefix_index import ENTRY_BYTES

MODEL = "m"
BLOCK_SIZE = 16
CHAIN = 512
HOLDERS = 8
DECISIONS = 300
RUNS = 3


class Bench:
    """A scheduler before a loaded fleet. `tells_cache`: its engines publish what they cache."""

    def __init__(self, policy: str, workers: int, index_blocks: int = 0, tells_cache: bool = True) -> None:
        self.random = random.Random(1)
        self.placed = 0
        # both generations hold half of what is allowed
        settings = PredictionSettings(index_bytes=2 * ENTRY_BYTES * (index_blocks + 2**20))
        self.policy = make_policy(policy, settings)
        self.scheduler: Scheduler[Request] = Scheduler(
            self.policy,
            SchedulerLimits(),
            draw=self.random.random,
            decide=self._decided,
            start_load=lambda wish: None,
        )
        for number in range(workers):
            self._add(number, tells_cache)
        self.store_cpu_us_per_block = self._fill(workers, index_blocks)

    def cpu_us(self, prompt_tokens: int, decisions: int = DECISIONS) -> list[float]:
        """Of a decision, in each run; no prompt comes twice, half of each is cached on eight workers."""
        replicas = list(self.scheduler.fleet.placeable(MODEL))
        found = []
        for _ in range(RUNS):
            requests = [self._request(prompt_tokens) for _ in range(decisions)]
            if isinstance(self.policy, Predicted):
                for request in requests:
                    known = request.block_hashes[: len(request.block_hashes) // 2]
                    for replica in self.random.sample(replicas, min(HOLDERS, len(replicas))):
                        self.policy.cache_changed(replica, known, ())
            gc.collect()
            gc.freeze()
            before, began = self.placed, process_time()
            for request in requests:
                self.scheduler.ask(request, 0.0)
            found.append((process_time() - began) / decisions * 1e6)
            if self.placed - before != decisions:
                raise RuntimeError(f"{decisions - self.placed + before} requests were not placed")
            self.scheduler.reservations.expire(10.0)
        return found

    def _decided(self, request: Request, decision: object) -> None:
        del request
        self.placed += isinstance(decision, Placed)

    def _request(self, prompt_tokens: int) -> Request:
        hashes = [self.random.getrandbits(64) for _ in range(prompt_tokens // BLOCK_SIZE)]
        return Request(
            "r",
            MODEL,
            Lane.STANDARD,
            0.0,
            100.0,
            zone="z1",
            engines=frozenset({"sim"}),
            tenant="t",
            prompt_tokens=prompt_tokens,
            max_tokens=256,
            block_hashes=hashes,
        )

    def _add(self, number: int, tells_cache: bool) -> None:
        replica = ReplicaFacts(
            MODEL,
            ReplicaState.READY,
            epoch=1,
            max_sequences=4096,
            features=frozenset({"cache_events"} if tells_cache else ()),
            block_size=BLOCK_SIZE,
            kv_blocks_total=1_000_000,
        )
        target, draw = f"w{number}", self.random.randint
        facts = WorkerFacts(
            f"{target}.1", target, f"z{number % 3}", Phase.READY, frozenset({"sim"}), (replica,)
        )
        self.scheduler.describe(target, facts, 0.0)
        step = Step(0.02, 10, 0, 10_000)
        load = ModelLoad(MODEL, draw(0, 200), 0, draw(0, 20_000), draw(1000, 300_000), 0, (step,))
        self.scheduler.sample(target, (load,), (), 0.0, 0.0)

    def _fill(self, workers: int, blocks: int) -> float:
        if not isinstance(self.policy, Predicted) or not blocks:
            return 0.0
        replicas, spent = list(self.scheduler.fleet.placeable(MODEL)), 0.0
        for _ in range(blocks // CHAIN):
            chain = [self.random.getrandbits(64) for _ in range(CHAIN)]
            replica = replicas[self.random.randrange(workers)]
            began = process_time()
            self.policy.cache_changed(replica, chain, ())
            spent += process_time() - began
        return spent / blocks * 1e6
