"""`python -m benchmarks.tokenizer`: measures, shows, and keeps a full run's results."""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from benchmarks._cores import TooFewCores, choose_cores
from benchmarks._report import RESULTS, Report, rounded, versions
from benchmarks.tokenizer import plots
from benchmarks.tokenizer.measure import (
    FULL,
    QUICK,
    TURNS,
    Cell,
    Plan,
    Turn,
    Writer,
    conversations,
    grows,
    medians,
    prompts,
)
from benchmarks.tokenizer.process import TokenizerFailed, tokenizer

BACKENDS = ("fastokens", "tokenizers")
LENGTHS = (64, 512, 4096)
CONCURRENCIES = (1, 4, 16, 64)
CACHES = {True: (), False: ("--prefix-cache-bytes", "0")}
MEASURED_WITH = ("fastokens", "jinja2", "protobuf", "tokenizers", "tokenfleet", "uvloop")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(highlight=False, soft_wrap=True)


@app.command()
def main(
    quick: Annotated[bool, typer.Option("--quick", help="a smoke run; keeps nothing")] = False,
) -> None:
    """Measures what prompts and conversations cost a tokenizer process."""
    plan = QUICK if quick else FULL
    try:
        cores = choose_cores()
        os.sched_setaffinity(0, [cores.load])
        turns = asyncio.run(_turns(cores.measured, plan))
        cells = asyncio.run(_cells(cores.measured, plan))
    except (TokenizerFailed, TooFewCores) as error:
        console.print(f"[bold red]tokenizer benchmark:[/] {error}")
        raise typer.Exit(1) from None
    figures = figures_of(cells, turns)
    for name, value in figures.items():
        console.print(f"{name:45} {rounded(value):>10}")
    if not quick:
        rows = [*map(asdict, cells), *map(asdict, turns)]
        report = Report("make bench-tokenizer", figures, rows, versions(*MEASURED_WITH))
        report.write(RESULTS / "tokenizer.json")
        for path in (RESULTS / "tokenizer.json", *plots.draw(cells, turns, RESULTS)):
            console.print(f"wrote {path.relative_to(RESULTS.parent.parent)}")


async def _turns(core: int, plan: Plan) -> list[Turn]:
    """With the cache and without in turn, so that what else the machine does meets both alike."""
    runs: dict[bool, list[list[Turn]]] = {True: [], False: []}
    for run in range(plan.windows):
        for cache, flags in CACHES.items():
            console.print(f"conversations, prefix cache {'on' if cache else 'off'}", style="dim")
            async with tokenizer(core, *flags) as process:
                turns = await conversations(process, cache, plan, Writer(run))
            if not grows(turns):
                raise TokenizerFailed("the conversations did not grow")
            runs[cache].append(turns)
    return [turn for cache in CACHES for turn in medians(runs[cache])]


async def _cells(core: int, plan: Plan) -> list[Cell]:
    cells = []
    for backend in BACKENDS:
        async with tokenizer(core, "--backend", backend) as process:
            for tokens in LENGTHS:
                console.print(f"{backend}, {tokens} tokens", style="dim")
                for concurrency in CONCURRENCIES:
                    writer = Writer(tokens + concurrency)
                    cells.append(await prompts(process, backend, tokens, concurrency, plan, writer))
    return cells


def figures_of(cells: list[Cell], turns: list[Turn]) -> dict[str, float]:
    """The cost of a prompt by backend and length, one by one and 64 at a time; the conversation's turns."""
    figures: dict[str, float] = {}
    for cell in cells:
        name = f"{cell.backend}/tokens={cell.prompt_tokens}@{cell.concurrency}"
        figures[f"cpu_us_per_prompt/{name}"] = cell.cpu_us_per_prompt
        figures[f"latency_ms_p99/{name}"] = cell.latency_ms_p99
    for backend in BACKENDS:
        for tokens in LENGTHS:
            of = {c.concurrency: c for c in cells if (c.backend, c.prompt_tokens) == (backend, tokens)}
            ratio = of[max(of)].cpu_us_per_prompt / of[1].cpu_us_per_prompt
            figures[f"batched_over_one_by_one/{backend}/tokens={tokens}"] = ratio
    for cache, suffix in ((True, ""), (False, "/no_cache")):
        cost = {turn.turn: turn.cpu_us for turn in turns if turn.cache is cache}
        figures[f"conversation_cpu_us/turn1{suffix}"] = cost[1]
        figures[f"conversation_cpu_us/turn{TURNS}{suffix}"] = cost[TURNS]
        figures[f"conversation_cost_ratio/turn{TURNS}_over_turn1{suffix}"] = cost[TURNS] / cost[1]
    last = max((turn for turn in turns if turn.cache), key=lambda turn: turn.turn)
    figures[f"conversation_cached_share/turn{TURNS}"] = last.cached_tokens / last.tokens
    return figures


if __name__ == "__main__":
    app()
