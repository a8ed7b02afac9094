"""What `tokenfleet quantize` does, from the names on its command line to the entry for the catalog."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from tokenfleet.cli.console import plain_or_coloured
from tokenfleet.cli.errors import CliError
from tokenfleet.cli.quantize.methods import METHODS, Method, find_method
from tokenfleet.cli.quantize.source import Source, find_source, size_of


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    source: str
    output: Path
    method: str
    catalog: Path | None
    group_size: int
    iterations: int
    check: bool
    force: bool


def list_methods() -> None:
    """One line each."""
    console = plain_or_coloured()
    for method in METHODS.values():
        console.print(f"{method.name:6} {method.makes:7} {method.engine:9} {method.about}", soft_wrap=True)


def run_quantize(options: QuantizeOptions) -> None:
    """Raises CliError; then nothing is left at the output's place that was not there before."""
    method = find_method(options.method)
    target = options.output.resolve()
    _refuse(options, method, target)
    source = find_source(options.source, options.catalog)
    if method.makes == "gguf" and not source.is_gguf:
        raise CliError(
            f"{method.name} is made from a gguf, and {source.path} is a folder: name its gguf, or take one "
            f"of {', '.join(one.name for one in METHODS.values() if one.makes == 'folder')}"
        )
    console = plain_or_coloured()
    began = time.monotonic()
    with _whole_or_nothing(target) as staging, _progress(console) as tell:
        notes = _make(source, staging, method, options, tell)
        checked = _checked(source, staging, method, tell) if options.check else ""
    before, after = source.bytes, size_of(target)
    console.print(
        f"{before / 1e6:,.0f} MB → {after / 1e6:,.0f} MB ({after / before:.0%}) in "
        f"{time.monotonic() - began:.0f} s: {target}",
        soft_wrap=True,
    )
    for note in (*notes, checked):
        if note:
            console.print(note, soft_wrap=True)
    console.print("\nFor the catalog:\n", soft_wrap=True)
    console.print(entry_of(source, target, method), markup=False, soft_wrap=True)


def entry_of(source: Source, target: Path, method: Method) -> str:
    """A catalog entry in YAML, with what is known of the model."""
    spec = source.spec
    lines = [f"- name: {spec.name}-{method.name.replace('_', '-')}", f"  source: file://{target}"]
    if method.makes == "folder" and source.is_gguf and spec.source.startswith("pip://"):
        lines.append(f"  tokenizer_source: {spec.source}")
    lines.append(f"  context_length: {source.context_length}")
    megabytes = -(-size_of(target) // 2**20)
    lines += [
        "  policy: lazy",
        "  engines:",
        f"    - engine: {method.engine}",
        f"      weights_bytes: {megabytes}MiB",
    ]
    return "\n".join(lines)


def _refuse(options: QuantizeOptions, method: Method, target: Path) -> None:
    if target.exists() and not options.force:
        raise CliError(f"{target} exists: name another output, or replace it with --force")
    if method.makes == "gguf" and target.suffix != ".gguf":
        raise CliError(f"{method.name} writes a file: let {options.output} end in .gguf")
    if method.makes == "folder" and target.suffix == ".gguf":
        raise CliError(f"{method.name} writes a folder, and {options.output} looks like a file")
    if options.check and method.makes == "folder":
        raise CliError(f"--check runs llama.cpp, which cannot read what {method.name} writes")
    if not target.parent.is_dir():
        raise CliError(f"there is no folder {target.parent}")


def _make(
    source: Source, staging: Path, method: Method, options: QuantizeOptions, tell: Callable[..., None]
) -> list[str]:
    """Answers what is worth knowing about the result."""
    if method.makes == "folder":
        from tokenfleet.cli.quantize.rounding import quantize_folder

        tell("preparing the weights")
        folder = source.as_folder()
        tell(f"quantizing to {method.name}")
        quantize_folder(
            folder, staging, method, wanted_group=options.group_size, iterations=options.iterations
        )
        return []
    try:
        from tokenfleet.cli.quantize.gguf_file import quantize_gguf

        outcome = quantize_gguf(
            source.path, staging, method, lambda done, of: tell(f"quantizing to {method.name}", done, of)
        )
    except ImportError as error:
        raise CliError(f"{method.name} needs {error.name}: pip install 'tokenfleet[quantize]'") from error
    notes = ["tensors: " + ", ".join(f"{count} {name}" for name, count in sorted(outcome.types.items()))]
    if outcome.fell_back:
        notes.append(
            f"{outcome.fell_back} of them are {method.otherwise}: their rows do not divide by 256, as "
            f"{method.type} needs"
        )
    return notes


def _checked(source: Source, made: Path, method: Method, tell: Callable[..., None]) -> str:
    from tokenfleet.cli.quantize.check import compare

    tell(f"asking before and after {method.name}")
    found = compare(source.path, made)
    return (
        f"answers agree for {found.share:.0%} of their text with those of {source.path.name}; "
        f"{found.whole} of {found.of} are the same to their end"
    )


@contextmanager
def _whole_or_nothing(target: Path) -> Iterator[Path]:
    """A path beside the target, which takes the target's place at the end, or vanishes."""
    staging = target.with_name(f".{target.stem}.partial-{os.getpid()}{target.suffix}")
    try:
        yield staging
        if target.is_dir():
            shutil.rmtree(target)
        staging.replace(target)
    finally:
        if staging.is_dir():
            shutil.rmtree(staging, ignore_errors=True)
        else:
            staging.unlink(missing_ok=True)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[..., None]]:
    """A bar on a terminal, a line for each stage elsewhere."""
    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        stages: set[str] = set()

        def tell(stage: str, done: int = 0, of: int = 0) -> None:
            progress.update(task, description=stage, completed=done, total=of or None)
            if stage not in stages and not console.is_terminal:
                console.print(f"{stage} …", markup=False, soft_wrap=True)
            stages.add(stage)

        yield tell
