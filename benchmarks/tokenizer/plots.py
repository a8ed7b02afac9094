"""Two pictures: cost against concurrency, and the turns of a conversation with the cache and without."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks._report import BLUE, GREEN, ORANGE, VERMILION, figure
from benchmarks.tokenizer.measure import Cell, Turn


def draw(cells: Sequence[Cell], turns: Sequence[Turn], folder: Path) -> list[Path]:
    return [
        _batching(cells, folder / "tokenizer-batching.png"),
        _turns(turns, folder / "tokenizer-turns.png"),
    ]


def _batching(cells: Sequence[Cell], path: Path) -> Path:
    title = "What a prompt costs the tokenizer"
    with figure(path, title=title, xlabel="prompts in a message", ylabel="µs of one core per prompt") as axes:
        lengths = sorted({cell.prompt_tokens for cell in cells})
        for colour, length in zip((BLUE, GREEN, VERMILION), lengths, strict=True):
            for backend, line in (("fastokens", "-"), ("tokenizers", "--")):
                line_cells = [c for c in cells if (c.backend, c.prompt_tokens) == (backend, length)]
                counts = [cell.concurrency for cell in line_cells]
                costs = [cell.cpu_us_per_prompt for cell in line_cells]
                label = f"{length} tokens, {backend}"
                axes.plot(counts, costs, color=colour, linestyle=line, marker="o", label=label)
        counts = sorted({cell.concurrency for cell in cells})
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return path


def _turns(turns: Sequence[Turn], path: Path) -> Path:
    title = "A conversation's turns, each with all before it"
    with figure(path, title=title, xlabel="turn", ylabel="µs of one core per prompt") as axes:
        for cache, label, colour in ((False, "no prefix cache", ORANGE), (True, "prefix cache", BLUE)):
            some = [turn for turn in turns if turn.cache is cache]
            numbers, costs = [turn.turn for turn in some], [turn.cpu_us for turn in some]
            axes.plot(numbers, costs, color=colour, marker="o", label=label)
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
        axes.set_xticks(range(1, max(turn.turn for turn in turns) + 1))
        axes.legend(loc="upper left")
    return path
