"""Fetches files of a Hugging Face hub, or of a mirror that speaks its protocol.

`huggingface_hub` knows the protocol, the endpoint (HF_ENDPOINT) and the token (HF_TOKEN, or a file that
HF_TOKEN_PATH names). What it does not do is done here: go on with the half of a file that a process left
which was killed, and hold every file against the digest that the hub published for it.

The library takes half a second to import, so that is done when a hub is first asked.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.models.bundle import load_failed
from tokenfleet.runtime.models.digests import file_digest
from tokenfleet.runtime.models.progress import Progress, no_progress
from tokenfleet.runtime.models.room import is_disk_full, size_of
from tokenfleet.runtime.models.sources import HubSource
from tokenfleet.v1 import common_pb2

PARTIAL = ".partial"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "config.json",
)
# What an engine reads beside the weights; no pictures, no other frameworks' weights.
_BESIDE = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
_ANSWER_WITHIN_S = 30.0


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file as the hub describes it. `sha256` is known of large ones, `git_blob` of all."""

    path: str
    size: int
    sha256: str
    git_blob: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository at one commit."""

    source: HubSource
    commit: str
    files: tuple[HubFile, ...]

    def weights(self) -> list[HubFile]:
        """The files that the source means. Raises FleetError (LOAD_FAILED) when it is not clear."""
        if self.source.member:
            return self._named()
        here = [file for file in self.files if "/" not in file.path]
        if tensors := _matching(here, ("*.safetensors",)):
            return [*tensors, *_matching(here, _BESIDE)]
        ggufs = _matching(self.files, ("*.gguf",))
        if len(ggufs) == 1:
            return ggufs
        if ggufs:
            raise load_failed(
                f"{self.source} holds {len(ggufs)} gguf files: name one, such as "
                f"{self.source}/{ggufs[0].path} (there are {_names(ggufs)})"
            )
        raise load_failed(
            f"{self.source} holds neither *.safetensors nor a gguf file: name what to load with "
            f"{self.source}/FILE (there are {_names(self.files)})"
        )

    def tokenizer(self) -> list[HubFile]:
        """The tokenizer's own files, those in the weights' folder first; there may be none."""
        own = PurePosixPath(self.source.member).parent if self.source.member else PurePosixPath(".")
        for folder in dict.fromkeys((own, PurePosixPath("."))):
            wanted = {str(folder / name) for name in TOKENIZER_FILES}
            found = [file for file in self.files if file.path in wanted]
            if str(folder / TOKENIZER_FILES[0]) in {file.path for file in found}:
                return found
        return []

    def _named(self) -> list[HubFile]:
        found = [file for file in self.files if file.path == self.source.member]
        found = found or _matching(self.files, (self.source.member,))
        if found:
            return found
        raise load_failed(f"{self.source} matches no file; there are {_names(self.files)}")


def snapshot(source: HubSource, commit: str = "") -> Snapshot:
    """What the repository holds at that commit, or at the one that the source's revision now means."""
    with _asking(source):
        from huggingface_hub import HfApi

        info = HfApi().model_info(
            source.repository,
            revision=commit or source.revision,
            files_metadata=True,
            timeout=_ANSWER_WITHIN_S,
        )
    files = [
        HubFile(
            path=each.rfilename,
            size=each.size or 0,
            sha256=each.lfs.sha256 if each.lfs else "",
            git_blob=each.blob_id or "",
        )
        for each in info.siblings or ()
    ]
    return Snapshot(source, info.sha or "", tuple(sorted(files, key=lambda file: file.path)))


def fetch(snapshot: Snapshot, files: Iterable[HubFile], folder: Path, progress: Progress) -> dict[str, str]:
    """Leaves the files in the folder, each as the hub says it is; answers their sha256 by path.

    What lies there from an attempt that broke off is used. Raises FleetError (LOAD_FAILED), and OSError
    when a file cannot be written.
    """
    wanted = list(files)
    counter = _Counter(progress, sum(file.size for file in wanted))
    return {file.path: _fetch(snapshot, file, folder, counter) for file in wanted}


def bytes_there(folder: Path) -> int:
    """What an earlier attempt left."""
    return size_of(folder)


def _fetch(snapshot: Snapshot, file: HubFile, folder: Path, counter: _Counter) -> str:
    final = folder / file.path
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_name(final.name + PARTIAL)
    if final.exists() and final.stat().st_size != file.size:
        final.unlink()
    if not final.exists():
        _download(snapshot, file, partial, counter.of_file())
        os.replace(partial, final)
    counter.finished(file.size)
    digest = file_digest(final, counter.progress if file.size > 1 << 20 else no_progress)
    told, is_there = (file.sha256, digest) if file.sha256 else (file.git_blob, _git_blob(final))
    if told and told != is_there:
        final.unlink()
        raise load_failed(
            f"{snapshot.source}: {file.path} did not arrive as the hub published it: its digest is "
            f"{is_there}, expected {told}; it is fetched again with the next attempt"
        )
    return digest


def _download(snapshot: Snapshot, file: HubFile, partial: Path, advanced: Callable[[int], None]) -> None:
    with _asking(snapshot.source):
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented there

        url = hf_hub_url(snapshot.source.repository, file.path, revision=snapshot.commit)
        with partial.open("ab") as content:
            if content.tell() > file.size:
                content.truncate(0)
            resumed = content.tell()
            advanced(resumed)
            http_get(
                url,
                content,
                resume_size=resumed,
                headers=build_hf_headers(),
                expected_size=file.size,
                tqdm_class=cast(Any, _bar(advanced)),
            )
            content.flush()
            os.fsync(content.fileno())


class _Counter:
    """Bytes over all files."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress = progress
        self._total = total
        self._finished = 0

    def of_file(self) -> Callable[[int], None]:
        done = 0

        def advanced(count: int) -> None:
            nonlocal done
            done += count
            self._report(self._finished + done)

        return advanced

    def finished(self, size: int) -> None:
        self._finished += size
        self._report(self._finished)

    def _report(self, done: int) -> None:
        self.progress(common_pb2.LoadProgress.STAGE_FETCHING, min(done, self._total), self._total)


def _bar(advanced: Callable[[int], None]) -> type:
    """What the library takes for a progress bar; an exception in `advanced` ends the download."""

    class Bar:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, count: int) -> None:
            advanced(count)

    return Bar


@contextmanager
def _asking(source: HubSource) -> Iterator[None]:
    """What the hub or the way to it answers, as an error that says what to do."""
    try:
        import huggingface_hub.errors as refusals
        from httpx2 import HTTPError, InvalidURL
        from huggingface_hub import constants
    except ImportError as error:
        raise load_failed(
            f"{source} needs the package huggingface_hub: install tokenfleet[model-sources] ({error})"
        ) from error
    try:
        yield
    except refusals.OfflineModeIsEnabled as error:
        raise load_failed(
            f"{source} is not in this node's cache, and HF_HUB_OFFLINE forbids to ask the hub: fetch it once "
            "without, or name a copy with file://"
        ) from error
    except refusals.GatedRepoError as error:
        raise load_failed(
            f"{source} is gated: accept its terms at {constants.ENDPOINT}/{source.repository}, and give a "
            "token of that account by HF_TOKEN_PATH (a file) or HF_TOKEN"
        ) from error
    except refusals.RevisionNotFoundError as error:
        raise load_failed(
            f"{source}: {source.repository} has no revision {source.revision!r}: name a branch, a tag or a "
            "commit behind the @"
        ) from error
    except refusals.RepositoryNotFoundError as error:
        raise load_failed(
            f"{source}: {constants.ENDPOINT} shows no such repository. Check the name; a private one needs a "
            "token, by HF_TOKEN_PATH (a file) or HF_TOKEN"
        ) from error
    except refusals.HfHubHTTPError as error:
        raise _refused(source, error, constants.ENDPOINT) from error
    except (HTTPError, InvalidURL, ValueError) as error:
        raise _unreachable(source, error, constants.ENDPOINT) from error
    except OSError as error:
        if is_disk_full(error) or error.errno is not None:
            raise
        raise _unreachable(source, error, constants.ENDPOINT) from error


def _refused(source: HubSource, error: Any, endpoint: str) -> FleetError:
    status = error.response.status_code
    told = error.server_message or error.response.reason_phrase
    remedy = {
        401: ": the token in HF_TOKEN or HF_TOKEN_PATH is not a good one",
        403: ": the token may not read this repository",
        429: ": it wants fewer requests; a token raises its limits",
    }.get(status, "")
    return load_failed(f"{source}: {endpoint} answers {status} {told}{remedy}")


def _unreachable(source: HubSource, error: Exception, endpoint: str) -> FleetError:
    told = str(error) or type(error).__name__
    return load_failed(
        f"{source}: cannot get it from {endpoint}: {told}. HF_ENDPOINT names another hub or a mirror"
    )


def _matching(files: Iterable[HubFile], patterns: Iterable[str]) -> list[HubFile]:
    return [file for file in files if any(fnmatch.fnmatchcase(file.path, pattern) for pattern in patterns)]


def _names(files: Iterable[HubFile]) -> str:
    names = [file.path for file in files]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "none"


def _git_blob(file: Path) -> str:
    """How git names a content, which is how a hub names its small files."""
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
