"""Closed and open loops over sessions.

Closed: each connection sends its next request when its last is answered, so the offered load follows the
fleet's speed; right for cost per token at a fixed concurrency. Open: requests leave at Poisson times whatever
the fleet does, and are timed from when they were due; right for latency, goodput and overload.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from functools import partial
from time import perf_counter

from loadtest.driver.load import Load, RequestFactory
from loadtest.driver.session import Session
from loadtest.driver.stats import Snapshot, Tally

FIRST_RECONNECT_S = 0.05
SLOWEST_RECONNECT_S = 2.0
SILENCE_CHECK_S = 1.0


class LoadLoop:
    """Makes the described load until `stop`."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._loop = asyncio.get_running_loop()
        self._requests = RequestFactory(load)
        self._draw = random.Random(load.seed)
        self._sessions: set[Session] = set()
        self._idle: deque[Session] = deque()
        self._due: deque[float] = deque()  # open loop: requests without a connection yet
        self._connecting: set[asyncio.Task[None]] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._refusals = 0
        self._stopping = False
        self._quiet = asyncio.Event()
        self.tally = Tally()

    async def start(self) -> None:
        """Opens the connections, then begins. Raises OSError when nobody listens."""
        await asyncio.gather(*(self._open() for _ in range(self._load.concurrency)))
        self._every(SILENCE_CHECK_S, self._check_silence)
        if self._load.rate > 0:
            self._idle.extend(self._sessions)
            self._arrive(perf_counter())
            return
        for position, session in enumerate(self._sessions):
            delay = self._load.stagger_s * position / len(self._sessions)
            self._later(delay, partial(self._begin, session))

    def snapshot(self) -> Snapshot:
        return self.tally.snapshot(perf_counter())

    async def stop(self, patience_s: float) -> Snapshot:
        """Sends nothing new, lets running answers finish, closes everything."""
        self._stopping = True
        for timer in self._timers:
            timer.cancel()
        self._due.clear()
        self._look_if_quiet()
        try:
            async with asyncio.timeout(patience_s):
                await self._quiet.wait()
        except TimeoutError:
            self.tally.fail(f"not finished within {patience_s:g} s of the end")
        for task in self._connecting:
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        final = self.snapshot()
        for session in self._sessions:
            session.close()
        return final

    async def _open(self) -> Session:
        _, session = await self._loop.create_connection(
            lambda: Session(self._load, self.tally, self._free, self._lost), self._load.host, self._load.port
        )
        self._sessions.add(session)
        return session

    def _begin(self, session: Session) -> None:
        if not self._stopping and session in self._sessions:
            session.send(self._requests.next(), perf_counter())

    def _free(self, session: Session) -> None:
        if self._stopping:
            self._look_if_quiet()
        elif self._load.rate <= 0:
            session.send(self._requests.next(), perf_counter())
        elif self._due:
            session.send(self._requests.next(), self._due.popleft())
        else:
            self._idle.append(session)

    def _lost(self, session: Session) -> None:
        self._sessions.discard(session)
        if session in self._idle:
            self._idle.remove(session)
        if self._stopping:
            self._look_if_quiet()
        elif self._load.rate <= 0:
            self._spawn_connection()

    def _look_if_quiet(self) -> None:
        if not any(session.busy for session in self._sessions):
            self._quiet.set()

    def _arrive(self, due: float) -> None:
        """Sends what is due by now and comes back for the next."""
        now = perf_counter()
        while due <= now:
            if self._idle:
                self._idle.pop().send(self._requests.next(), due)
            else:
                self._due.append(due)
                self._spawn_connection()
            due += self._draw.expovariate(self._load.rate)
        self._later(due - now, lambda: self._arrive(due))

    def _spawn_connection(self) -> None:
        task = asyncio.ensure_future(self._connect_again())
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect_again(self) -> None:
        """Opens one more connection and puts it to work; a refusal is a failure, and slows the next try."""
        while not self._stopping:
            try:
                session = await self._open()
            except OSError as error:
                self._refusals = min(self._refusals + 1, 16)
                self.tally.fail(f"cannot connect: {error.strerror or error}")
                pause = min(SLOWEST_RECONNECT_S, FIRST_RECONNECT_S * 2**self._refusals)
                await asyncio.sleep(pause * self._draw.uniform(0.5, 1.0))
            else:
                self._refusals = 0
                self._free(session)
                return

    def _check_silence(self) -> None:
        now = perf_counter()
        for session in tuple(self._sessions):
            session.give_up_if_silent(now)
        while self._due and now - self._due[0] > self._load.silence_s:
            self._due.popleft()
            self.tally.fail(f"no connection for {self._load.silence_s:g} s")

    def _every(self, seconds: float, call: Callable[[], None]) -> None:

        def again() -> None:
            call()
            self._later(seconds, again)

        self._later(seconds, again)

    def _later(self, seconds: float, call: Callable[[], None]) -> None:

        def fire() -> None:
            self._timers.discard(handle)
            call()

        handle = self._loop.call_later(seconds, fire)
        self._timers.add(handle)
