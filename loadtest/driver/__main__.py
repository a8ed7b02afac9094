"""`python -m loadtest.driver`: loads a fleet and prints what it saw; or serves a parent process.

With `--controlled` the process obeys lines on its standard input: `snapshot` answers with the counters as
one line of JSON, `stop` lets running answers finish, answers likewise, and ends. A parent can thus read the
counters and the processor times of the fleet at the same moments.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from contextlib import suppress
from typing import Annotated

import typer
import uvloop

from loadtest.driver.load import Load
from loadtest.driver.loop import LoadLoop
from loadtest.driver.stats import Snapshot, percentile

DRAIN_S = 60.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    *,
    host: Annotated[str, typer.Option(help="where the gateway listens")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="its HTTP port")] = 8080,
    model: Annotated[str, typer.Option(help="model to ask for")] = "default",
    concurrency: Annotated[int, typer.Option(min=1, help="connections; in a closed loop always busy")] = 64,
    rate: Annotated[float, typer.Option(min=0, help="requests a second, Poisson; 0: closed loop")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1)] = 64,
    stream: Annotated[bool, typer.Option(help="server-sent events, or the answer in one piece")] = True,
    chat: Annotated[bool, typer.Option(help="/v1/chat/completions or /v1/completions")] = True,
    prompt_chars: Annotated[int, typer.Option(min=10)] = 128,
    stagger: Annotated[float, typer.Option(min=0, help="seconds over which the first requests start")] = 0.0,
    seed: Annotated[int, typer.Option(help="of prompts and arrival times")] = 1,
    duration: Annotated[float, typer.Option(min=0.1, help="seconds to load for")] = 10.0,
    load_json: Annotated[str, typer.Option("--load", hidden=True)] = "",
    controlled: Annotated[bool, typer.Option("--controlled", hidden=True)] = False,
) -> None:
    """Loads an OpenAI-compatible server. Ends with 1 when any request failed."""
    load = Load(
        host=host,
        port=port,
        model=model,
        concurrency=concurrency,
        rate=rate,
        max_tokens=max_tokens,
        stream=stream,
        chat=chat,
        prompt_chars=prompt_chars,
        stagger_s=stagger,
        seed=seed,
    )
    work = _obey(Load.from_json(load_json)) if controlled else _run_for(load, duration)
    with suppress(KeyboardInterrupt):
        raise typer.Exit(uvloop.run(work))


async def _obey(load: Load) -> int:
    loop = await _started(load)
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    while line := await commands.readline():
        match line.strip():
            case b"snapshot":
                _print(loop.snapshot())
            case b"stop":
                _print(await loop.stop(DRAIN_S))
                return 0
            case other:
                raise SystemExit(f"unknown command {other!r}: there are snapshot and stop")
    return 0


async def _run_for(load: Load, duration: float) -> int:
    loop = await _started(load)
    begin = loop.snapshot()
    await asyncio.sleep(duration)
    at_end = loop.snapshot()
    final = await loop.stop(DRAIN_S)
    print(json.dumps(_summary(begin, at_end, final), indent=2))
    return 1 if final.failed else 0


async def _started(load: Load) -> LoadLoop:
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    loop = LoadLoop(load)
    try:
        await loop.start()
    except OSError as error:
        raise SystemExit(f"nobody answers at {load.host}:{load.port}: {error.strerror or error}") from error
    return loop


def _summary(begin: Snapshot, at_end: Snapshot, final: Snapshot) -> dict[str, object]:
    seconds = at_end.time_s - begin.time_s
    summary: dict[str, object] = {
        "seconds": round(seconds, 2),
        "requests": at_end.finished,
        "requests_per_s": round(at_end.finished / seconds, 1),
        "frames_per_s": round(at_end.content_frames / seconds, 1),
        "frames_per_token": round(final.finished_frames / max(final.finished_tokens, 1), 4),
        "failed": final.failed,
        "errors": final.errors,
    }
    for name in ("ttft_s", "itl_s", "worst_gap_s", "latency_s"):
        values = getattr(at_end, name)
        if values:
            quarters = {f"p{q}": round(1000 * percentile(values, q), 2) for q in (50, 90, 99)}
            summary[name.removesuffix("_s") + "_ms"] = quarters
    return summary


def _print(snapshot: Snapshot) -> None:
    print(json.dumps(snapshot.as_dict()), flush=True)


if __name__ == "__main__":
    app()
