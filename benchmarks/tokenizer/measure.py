"""The two measurements: prompts of one length at one concurrency, and conversations turn by turn."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from time import perf_counter

from benchmarks._proc import CpuMeter, used_between
from benchmarks.tokenizer.process import MODEL, Tokenizer
from loadtest.driver.stats import percentile
from tokenfleet.v1 import tokenizer_pb2

TURNS = 20
MESSAGE_CHARS = 512
WARMING_PROMPTS = 256
# Conversations measured together; the median of such groups leaves out what else the machine did meanwhile.
GROUP = 8
CHARS_PER_TOKEN = 5.2  # of these words

_WORDS = """the of and to in is that it was for on are with as they be at one have this from by hot but some
what there we can out other were all your when up use word how said an each she which do their time if will
way about many then them would write like so these her long make thing see him two has look more day could go
come did my sound no most number who over know water than call first people may down side been now find any
new work part take get place made live where after back little only round man year came show every good me
give our under name very through just form much great think say help low line before turn cause same mean
differ move right boy old too does tell sentence set three want air well also play small end put home read
hand port large spell add even land here must big high such follow act why ask men change went light kind off
need house picture try us again animal point mother world near build self earth father""".split()


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is enough."""

    windows: int
    prompts: int  # of 64 tokens in a window; fewer of longer ones
    conversations: int


FULL = Plan(windows=3, prompts=1536, conversations=128)
QUICK = Plan(windows=1, prompts=192, conversations=16)


class Writer:
    """Texts of English words, no two alike from their first word on."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._number = self._draw.randrange(10**6)

    def text(self, characters: int) -> str:
        self._number += 1
        words = [str(self._number)]
        length = 0
        while length < characters:
            words.append(self._draw.choice(_WORDS))
            length += len(words[-1]) + 1
        return " ".join(words)[:characters]


@dataclass(frozen=True, slots=True)
class Cell:
    """What prompts of one length cost at one concurrency."""

    backend: str
    prompt_tokens: int
    concurrency: int
    cpu_us_per_prompt: float
    cpu_us_per_token: float
    latency_ms_p50: float
    latency_ms_p99: float


async def prompts(
    process: Tokenizer, backend: str, tokens: int, concurrency: int, plan: Plan, writer: Writer
) -> Cell:
    """`concurrency` jobs at a time in one message; the next ones when all of them are answered."""
    rounds = max(4, plan.prompts * 64 // max(64, tokens) // concurrency)
    meter = CpuMeter({"tokenizer": [process.pid]})
    costs, latencies, counted = [], [], 0.0
    for window in range(plan.windows + 1):  # the first one warms up
        lots = [
            [chat_job([writer.text(int(tokens * CHARS_PER_TOKEN))]) for _ in range(concurrency)]
            for _ in range(rounds)
        ]
        before, seen = meter.sample(), 0
        for lot in lots:
            started = perf_counter()
            results = await process.encode(lot)
            if window:
                latencies.append(perf_counter() - started)
            seen += sum(result.token_count for result in results)
        if window:
            used_s = used_between(before, meter.sample())["tokenizer"]
            costs.append(1e6 * used_s / rounds / concurrency)
            counted = seen / rounds / concurrency
    cost = median(costs)
    p50, p99 = (1e3 * percentile(latencies, share) for share in (50, 99))
    return Cell(backend, tokens, concurrency, cost, cost / counted, p50, p99)


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn of a conversation costs; cached tokens as the tokenizer says."""

    turn: int
    cache: bool
    cpu_us: float
    tokens: float
    cached_tokens: float


async def conversations(process: Tokenizer, cache: bool, plan: Plan, writer: Writer) -> list[Turn]:
    """Many conversations side by side, so that a turn takes long enough to be measured; one job at a time."""
    talks: list[list[str]] = [[] for _ in range(plan.conversations)]
    meter = CpuMeter({"tokenizer": [process.pid]})
    for _ in range(WARMING_PROMPTS):
        await process.encode([chat_job([writer.text(MESSAGE_CHARS)])])
    turns = []
    for turn in range(1, TURNS + 1):
        for talk in talks:
            # the answer to the turn before, and the next question
            talk += [writer.text(MESSAGE_CHARS) for _ in range(2 if talk else 1)]
        jobs = [chat_job(talk) for talk in talks]
        results, costs = [], []
        for start in range(0, len(jobs), GROUP):
            group = jobs[start : start + GROUP]
            before = meter.sample()
            results += [(await process.encode([job]))[0] for job in group]
            costs.append(used_between(before, meter.sample())["tokenizer"] / len(group))
        tokens = sum(result.token_count for result in results) / len(jobs)
        cached = sum(result.cached_tokens for result in results) / len(jobs)
        turns.append(Turn(turn, cache, 1e6 * median(costs), tokens, cached))
    return turns


def chat_job(messages: list[str]) -> tokenizer_pb2.EncodeJob:
    job = tokenizer_pb2.EncodeJob(model=MODEL)
    job.chat.add_generation_prompt = True
    for index, text in enumerate(messages):
        job.chat.messages.add(role=("user", "assistant")[index % 2], content=text)
    return job


def medians(runs: list[list[Turn]]) -> Iterator[Turn]:
    """Turn by turn over the runs."""
    for same in zip(*runs, strict=True):
        one = same[0]
        cost = median(turn.cpu_us for turn in same)
        yield Turn(one.turn, one.cache, cost, one.tokens, one.cached_tokens)


def grows(turns: list[Turn]) -> bool:
    """Whether each turn was longer than the one before it."""
    return all(one.tokens < other.tokens for one, other in pairwise(turns))
