"""A program: the likeliest answers of a gguf to the built-in prompts, as a JSON list on standard output."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from tokenfleet.cli.quantize.check import PROMPTS, TOKENS
from tokenfleet.worker.engines.hosted.child import die_with_parent


def main() -> None:
    die_with_parent()
    answer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # llama.cpp prints; the answer must stay alone
    try:
        import xllamacpp
    except ImportError:
        sys.exit("pip install 'tokenfleet[worker-llamacpp]'")
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.n_parallel, params.n_ctx, params.warmup, params.verbosity = 1, 512, False, 1
    # half of the machine, as a worker takes: threads that wait for each other on a busy one crawl
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = max(1, (os.cpu_count() or 1) // 2)
    server = xllamacpp.Server(params)
    os.write(answer, json.dumps([_answer(server, prompt) for prompt in PROMPTS]).encode() + b"\n")
    os._exit(0)  # the server's destructor may wait for one of its threads for ever


def _answer(server: Any, prompt: str) -> str:
    asked = {
        "prompt": prompt,
        "n_predict": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
    }
    text: str = server.handle_completions(asked)["choices"][0]["text"]
    return text


if __name__ == "__main__":
    main()
