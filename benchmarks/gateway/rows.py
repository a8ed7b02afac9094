"""One row: its load on one system, measured in windows, judged, and laid down as plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from statistics import median
from typing import Any

from benchmarks._cores import Cores
from benchmarks._measure import GENERATOR, Schedule, Window, measure_windows
from benchmarks._priority import step_forward
from benchmarks._proc import peak_resident_mb
from benchmarks._report import rounded
from benchmarks.gateway.plan import TTFT_MS, Row
from benchmarks.gateway.systems import GATEWAY, System
from loadtest.driver.control import DriverProcess
from loadtest.driver.stats import Snapshot, percentile

MOST_BUSY_LOAD_CORE = 0.95
MOST_GENERATOR_SHARE = 0.5
LEAST_FRAMES_PER_TOKEN = 0.95
SLOWEST_PACE = 1.05
REQUEST_PATH = (GATEWAY, "tokenizer", "router")


@dataclass(frozen=True, slots=True)
class RowResult:
    """Medians over the windows. Times in the unit that the name ends with; shares of one core."""

    row: str
    system: str
    engine: str
    links: str
    connections: int
    itl_ms: int
    tokens_per_answer: int
    streamed: bool
    sequences_per_worker_stream: int
    cpu_us_per_token: float  # of the process on the measured core
    cpu_us_per_request: Mapping[str, float]  # by group of processes
    frames_per_token: float
    tokens_per_s: float
    requests_per_s: float
    added_ttft_ms_p50: float
    added_ttft_ms_p99: float
    itl_ms_p50: float
    worst_gap_ms_p99: float
    latency_ms_p50: float
    latency_ms_p99: float
    core_share: Mapping[str, float]  # by group of processes
    measured_core_busy: float  # whoever used it
    load_core_busy: float
    foreign_share: float  # of both cores, used by what does not belong to the benchmark
    generator_us_per_frame: float
    resident_mb: float
    peak_resident_mb: float
    requests: int
    failed: int
    problems: tuple[str, ...] = ()
    windows: list[dict[str, float]] = field(default_factory=list)

    @property
    def valid(self) -> bool:
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        values = {name: _rounded(value) for name, value in asdict(self).items()}
        return values | {"valid": self.valid, "problems": list(self.problems)}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return rounded(value) if isinstance(value, float) else value


async def run_row(
    row: Row,
    system: System,
    cores: Cores,
    schedule: Schedule,
    on_window: Callable[[Window], None] = lambda window: None,
) -> RowResult:
    """Loads the system as the row says. Raises DriverError when it cannot be loaded at all."""
    windows: list[Window] = []
    async with DriverProcess(row.load(system.host, system.port), [cores.load]) as driver:
        step_forward([driver.pid, *chain.from_iterable(system.groups.values())])
        patient = Schedule(max(schedule.warmup_s, row.stream_s + 0.5), schedule.window_s, schedule.windows)
        async for window in measure_windows(driver, system.groups, GATEWAY, cores, patient):
            windows.append(window)
            on_window(window)
        final = await driver.stop()
    return summarize(row, system, windows, final, peak_resident_mb(system.groups[GATEWAY]))


def summarize(
    row: Row, system: System, windows: Sequence[Window], final: Snapshot, peak_mb: float
) -> RowResult:
    """The windows' medians, and what makes them worthless."""

    def mid(value: Callable[[Window], float]) -> float:
        return median(value(window) for window in windows)

    frames_per_token = final.finished_frames / final.finished_tokens if final.finished_tokens else 0.0
    result = RowResult(
        row=row.name,
        system=system.name,
        engine=system.engine,
        links=system.links,
        connections=row.concurrency,
        itl_ms=row.itl_ms,
        tokens_per_answer=row.tokens,
        streamed=row.stream,
        sequences_per_worker_stream=row.sequences_per_link,
        cpu_us_per_token=mid(lambda window: per(1e6 * window.cpu_s[GATEWAY], window.tokens)),
        cpu_us_per_request={
            group: mid(partial(_per_request, group)) for group in windows[0].cpu_s if group != GENERATOR
        },
        frames_per_token=frames_per_token,
        tokens_per_s=mid(lambda window: window.tokens / window.seconds),
        requests_per_s=mid(lambda window: window.requests / window.seconds),
        added_ttft_ms_p50=mid(lambda window: _added_ms(window, 50)),
        added_ttft_ms_p99=mid(lambda window: _added_ms(window, 99)),
        itl_ms_p50=mid(lambda window: _ms(window.itl_s, 50)),
        worst_gap_ms_p99=mid(lambda window: _ms(window.worst_gap_s, 99)),
        latency_ms_p50=mid(lambda window: _ms(window.latency_s, 50)),
        latency_ms_p99=mid(lambda window: _ms(window.latency_s, 99)),
        core_share={group: mid(partial(_share, group)) for group in windows[0].cpu_s},
        measured_core_busy=mid(lambda window: window.measured_core_busy),
        load_core_busy=mid(lambda window: window.load_core_busy),
        foreign_share=mid(_foreign),
        generator_us_per_frame=mid(lambda window: per(1e6 * window.cpu_s[GENERATOR], window.frames)),
        resident_mb=mid(lambda window: window.resident_mb),
        peak_resident_mb=peak_mb,
        requests=final.finished,
        failed=final.failed,
        windows=[_window_row(window) for window in windows],
    )
    return replace(result, problems=tuple(_problems(row, result, windows, final)))


def per(amount: float, count: float) -> float:
    """Zero where nothing happened: the row is then invalid for a better reason than a division."""
    return amount / count if count else 0.0


def _share(group: str, window: Window) -> float:
    return window.cpu_s[group] / window.seconds


def _per_request(group: str, window: Window) -> float:
    return per(1e6 * window.cpu_s[group], window.requests)


def _foreign(window: Window) -> float:
    own = sum(window.cpu_s.values()) / window.seconds
    return max(0.0, window.measured_core_busy + window.load_core_busy - own)


def _added_ms(window: Window, q: float) -> float:
    """Beyond the engine's own time to the first token."""
    return _ms(window.ttft_s, q) - TTFT_MS if window.ttft_s else 0.0


def _ms(values: Sequence[float], q: float) -> float:
    return 1000 * percentile(values, q) if values else 0.0


def _window_row(window: Window) -> dict[str, float]:
    shown = {
        "seconds": window.seconds,
        "cpu_us_per_token": per(1e6 * window.cpu_s[GATEWAY], window.tokens),
        "tokens": window.tokens,
        "requests": float(window.requests),
        "measured_core_busy": window.measured_core_busy,
        "load_core_busy": window.load_core_busy,
    }
    return {name: rounded(value) for name, value in shown.items()}


def _problems(row: Row, result: RowResult, windows: Sequence[Window], final: Snapshot) -> list[str]:
    """Why the row says nothing about the gateway; empty: it does."""
    problems = [f"{count} × {reason}" for reason, count in final.errors.items()]
    if not final.finished:
        return [*problems, "no request was answered"]
    if not all(window.tokens for window in windows):
        problems.append("no token was counted in a whole window")
    if row.stream:
        if result.load_core_busy > MOST_BUSY_LOAD_CORE:
            problems.append(f"the load generator's core was {result.load_core_busy:.0%} busy")
        if result.frames_per_token < LEAST_FRAMES_PER_TOKEN:
            problems.append(f"{result.frames_per_token:.3f} frames per token: tokens were merged")
        if result.itl_ms_p50 > SLOWEST_PACE * row.itl_ms:
            problems.append(f"a token every {result.itl_ms_p50:.1f} ms instead of {row.itl_ms}")
    elif result.core_share[GENERATOR] > MOST_GENERATOR_SHARE:
        # a closed loop without pauses fills a core: it must not be the generator that does
        problems.append(f"the load generator used {result.core_share[GENERATOR]:.0%} of its core")
    return problems
