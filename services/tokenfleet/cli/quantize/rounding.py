"""Hugging Face's folder to one with integers, by AutoRound, in a process of its own.

Run as a module it is that process: `python -m tokenfleet.cli.quantize.rounding`, told what to do as JSON on
standard input. It needs torch, which is gigabytes, so it is imported nowhere else.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenfleet.cli.errors import CliError
from tokenfleet.cli.quantize.check import PROMPTS
from tokenfleet.cli.quantize.methods import Method, group_size
from tokenfleet.runtime.last_words import last_words
from tokenfleet.worker.engines.hosted.child import die_with_parent

_NEEDED = ("torch", "transformers", "auto_round")
# Tokens of a sample that activations are looked at with.
_SAMPLE_TOKENS = 64


def row_widths(folder: Path) -> set[int]:
    """Of the linear layers, by the model's configuration. Raises CliError for a folder without one."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return {int(config["hidden_size"]), int(config["intermediate_size"])}
    except (OSError, ValueError, KeyError) as error:
        raise CliError(f"{folder}/config.json does not tell the sizes of the model: {error!r}") from error


def quantize_folder(
    folder: Path, target: Path, method: Method, *, wanted_group: int, iterations: int
) -> None:
    """Fills `target`. Raises CliError with what the library said last."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise CliError(
            f"{method.name} needs {', '.join(missing)}: install torch for your accelerator, then "
            "pip install transformers auto-round (`make setup-engines` makes such an environment for CPUs)"
        )
    told = {
        "model": str(folder),
        "target": str(target),
        "scheme": method.scheme,
        "format": method.format,
        "group_size": group_size(method, wanted_group, row_widths(folder)),
        "iterations": iterations,
    }
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=json.dumps(told),
            stdout=log,
            stderr=log,
            text=True,
            check=False,
        )
        if done.returncode:
            log.seek(0)
            raise CliError(f"{method.name} failed: {last_words(log.read(), done.returncode)}")


def _run(told: Mapping[str, Any]) -> None:
    import os

    die_with_parent()
    os.environ["HF_HUB_OFFLINE"] = "1"
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(told["model"], local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(told["model"], dtype="auto", local_files_only=True)
    samples = [" ".join([prompt] * _SAMPLE_TOKENS) for prompt in PROMPTS]
    rounding = AutoRound(
        model,
        tokenizer,
        scheme=told["scheme"],
        iters=told["iterations"],
        disable_opt_rtn=not told["iterations"],
        dataset=samples,
        nsamples=len(samples),
        seqlen=_SAMPLE_TOKENS,
        **({"group_size": told["group_size"]} if told["group_size"] else {}),
    )
    _, saved = rounding.quantize_and_save(told["target"], format=told["format"])
    _lift(Path(saved), Path(told["target"]))


def _lift(saved: Path, target: Path) -> None:
    """The library saves into a folder of its own naming below the target."""
    if saved != target:
        for file in tuple(saved.iterdir()):
            file.rename(target / file.name)
        saved.rmdir()
    if not (target / "config.json").is_file():
        sys.exit(f"it left no model in {target}")


if __name__ == "__main__":
    _run(json.loads(sys.stdin.read()))
