"""Named figures out of rows. A row that is not valid gives none but those that say why."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.gateway.plan import SPARSE_ITL_MS
from benchmarks.gateway.rows import REQUEST_PATH, RowResult, per

FLEET, BARE = "tokenfleet", "bare"


def figures_of(results: Iterable[RowResult]) -> dict[str, float]:
    """All figures, in the order of the rows."""
    results = list(results)
    bare = {result.row: result for result in results if result.system == BARE and result.valid}
    figures: dict[str, float] = {}
    for result in results:
        if result.system != FLEET:
            continue
        if result.streamed:
            figures |= _stream_figures(result, bare.get(result.row))
        elif result.valid:
            figures |= _request_figures(result)
    return figures


def _stream_figures(result: RowResult, bare: RowResult | None) -> dict[str, float]:
    figures: dict[str, float] = {}
    at = f"@{result.connections}"
    by_count = result.row == str(result.connections)
    if by_count:
        figures[f"frames_per_token{at}"] = result.frames_per_token
        figures[f"load_core_busy{at}"] = result.load_core_busy
    if not result.valid:
        return figures
    if result.itl_ms == SPARSE_ITL_MS:
        shared = f"/k={result.sequences_per_worker_stream}"
        figures[f"gateway_cpu_us_per_token{shared}"] = result.cpu_us_per_token
        if bare is not None:
            figures[f"gateway_over_bare{shared}"] = per(result.cpu_us_per_token, bare.cpu_us_per_token)
    if not by_count:
        return figures
    figures |= {
        f"gateway_cpu_us_per_token{at}": result.cpu_us_per_token,
        f"added_ttft_ms_p50{at}": result.added_ttft_ms_p50,
        f"added_ttft_ms_p99{at}": result.added_ttft_ms_p99,
        f"gateway_rss_mb{at}": result.resident_mb,
        f"generator_cpu_us_per_frame{at}": result.generator_us_per_frame,
    }
    if bare is not None:
        figures[f"bare_cpu_us_per_token{at}"] = bare.cpu_us_per_token
        figures[f"gateway_over_bare{at}"] = per(result.cpu_us_per_token, bare.cpu_us_per_token)
    return figures


def _request_figures(result: RowResult) -> dict[str, float]:
    parts = {role: result.cpu_us_per_request[role] for role in REQUEST_PATH}
    return {
        "fleet_cpu_us_per_request": sum(parts.values()),
        **{f"{role}_cpu_us_per_request": us for role, us in parts.items()},
        "worker_cpu_us_per_request": result.cpu_us_per_request["worker"],
        "requests_per_s": result.requests_per_s,
    }
