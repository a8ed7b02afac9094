"""What the router follows: who this worker is, what it holds, how busy it is.

Each watcher gets the state when it comes and from then on what it has not seen: the worker's description on
any change at once, a load sample on material change but not more often than its interval, and at least every
second, with the changes of the prefix caches for those who want them. Reservation ids and steps are kept per
watcher, so that several routers all see every one.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable

from tokenfleet.runtime.changes import Changes
from tokenfleet.v1 import worker_pb2
from tokenfleet.worker import machine
from tokenfleet.worker.cache_log import CacheLog
from tokenfleet.worker.resident import Resident, State

DEFAULT_INTERVAL_S = 0.050
LONGEST_SILENCE_S = 1.0
# A watcher that has seen no change of a cache wants to be told the whole.
NEVER = -1
# Ids kept for one watcher between two samples; at 50 ms that is over a million requests a second.
_MOST_ADMITTED = 65_536
# Steps in one sample: the latest say most.
_MOST_STEPS = 32


class WatchHub:
    """Tells all watchers; belongs to the event loop's thread."""

    def __init__(
        self,
        describe: Callable[[], worker_pb2.WorkerInfo],
        residents: Callable[[], Iterable[Resident]],
        load: Changes,
        cache: CacheLog,
    ) -> None:
        """`load` changes whenever a sequence comes or goes, or a prefix cache changes."""
        self._describe = describe
        self._residents = residents
        self._load = load
        self._cache = cache
        self._device = machine.Device()
        self._watchers: set[_Watcher] = set()
        self._info = Changes()

    def info_changed(self) -> None:
        self._info.notify()
        self._load.notify()

    def accelerator(self) -> worker_pb2.Accelerator:
        return self._device.accelerator(asyncio.get_running_loop().time())

    def admitted(self, reservation_id: str) -> None:
        for watcher in self._watchers:
            watcher.admitted.append(reservation_id)
        self._load.notify()

    async def watch(self, request: worker_pb2.WatchRequest) -> AsyncIterator[worker_pb2.WatchResponse]:
        """Until the caller stops asking."""
        interval = request.min_interval_ms / 1000 or DEFAULT_INTERVAL_S
        cache_seen = request.last_cache_sequence or NEVER
        watcher = _Watcher()
        self._watchers.add(watcher)
        loop = asyncio.get_running_loop()
        seen_info = -1
        snapshot: list[worker_pb2.CacheSnapshot] = []
        try:
            while True:
                seen_load = self._load.version
                response = worker_pb2.WatchResponse()
                if self._info.version != seen_info:
                    seen_info = self._info.version
                    response.info.CopyFrom(self._describe())
                sent_at = loop.time()
                watcher.sample(self._residents(), response.load)
                response.load.accelerator.CopyFrom(self.accelerator())
                if request.cache_events:
                    events = self._cache.after(cache_seen)
                    cache_seen = self._cache.sequence
                    response.cache_events.extend(events or ())
                    snapshot = list(self._cache.snapshot()) if events is None else []
                yield response
                for chunk in snapshot:
                    yield worker_pb2.WatchResponse(cache_snapshot=chunk)
                await self._load.after(seen_load, LONGEST_SILENCE_S - (loop.time() - sent_at))
                pause = interval - (loop.time() - sent_at)
                if pause > 0:
                    await self._info.after(seen_info, pause)
        finally:
            self._watchers.discard(watcher)


class _Watcher:
    """One watcher's own numbering, and what it has not been told yet."""

    def __init__(self) -> None:
        self.admitted: deque[str] = deque(maxlen=_MOST_ADMITTED)
        self._sequence = 0
        self._steps_seen: dict[int, int] = {}  # by epoch

    def sample(self, residents: Iterable[Resident], sample: worker_pb2.LoadSample) -> None:
        self._sequence += 1
        sample.sequence = self._sequence
        sample.admitted_ids.extend(self.admitted)
        self.admitted.clear()
        for resident in residents:
            if resident.engine is not None and resident.state == State.STATE_READY:
                self._add(resident, sample.models.add())

    def _add(self, resident: Resident, load: worker_pb2.LoadSample.ModelLoad) -> None:
        assert resident.engine is not None
        now = resident.engine.load_now()
        load.model = resident.name
        load.running = now.running
        load.waiting = now.waiting
        load.kv_blocks_used = now.kv_blocks_used
        load.queued_prefill_tokens = now.queued_prefill_tokens
        load.context_tokens = now.context_tokens
        load.arrivals = resident.arrivals
        load.idle_ms = int(resident.idle_s(time.monotonic()) * 1000)
        log = resident.engine.steps
        steps = log.since(self._steps_seen.get(resident.epoch, log.recorded))[-_MOST_STEPS:]
        self._steps_seen[resident.epoch] = log.recorded
        load.step_us.extend(round(step.duration_s * 1e6) for step in steps)
        load.step_batch.extend(step.batch for step in steps)
        load.step_prefill_tokens.extend(step.prefill_tokens for step in steps)
        load.step_context_tokens.extend(step.context_tokens for step in steps)
