"""The header of a gguf file: its keys with their values, and where its tensors lie.

The `gguf` package can read this too, but it builds an array per string: six seconds of CPU for a vocabulary
of 49,152 tokens, and numpy in every process. The header's format is a page long and frozen, hence this one
exception from using what exists. See the ggml project's `docs/gguf.md`.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tokenfleet.runtime.models.bundle import load_failed

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_U64 = struct.Struct("<Q")
_STRING, _ARRAY = 8, 9
# struct's letter for each scalar type of the format
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


# Bytes to whose multiples the tensors are aligned, where the file does not say.
_ALIGNMENT = 32

_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor lies, counted from the first one."""

    shape: tuple[int, ...]
    kind: int  # ggml's number of the type
    offset: int


def read_metadata(path: Path) -> dict[str, Any]:
    """All keys with their values; arrays are lists. Raises FleetError (LOAD_FAILED) on anything else."""
    return _read(path, lambda reader: reader.metadata())


def read_tensors(path: Path) -> tuple[list[Tensor], int]:
    """The tensors, and the byte at which they begin. Raises FleetError (LOAD_FAILED) on anything else."""
    return _read(path, lambda reader: reader.tensors())


def _read(path: Path, what: Callable[[_Reader], _Read]) -> _Read:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return what(_Reader(content))
    except (OSError, ValueError, OverflowError, MemoryError, struct.error) as error:
        raise load_failed(f"{path} is no readable gguf file: {error}") from error


class _Reader:
    """A position in the file, moving forward."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._at = 0
        self._count = 0  # of tensors

    def metadata(self, only: str | None = None) -> dict[str, Any]:
        """All keys, or one, if it is there: the others' values, a vocabulary among them, are passed over."""
        if self._content[:4] != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        version = self._scalar("I")
        if version not in _VERSIONS:
            raise ValueError(f"gguf version {version}, expected one of {_VERSIONS} (little-endian)")
        self._count = self._scalar("Q")
        pairs = self._scalar("Q")
        found = {}
        for _ in range(pairs):
            key, kind = self._string(), self._scalar("I")
            if only in (None, key):
                found[key] = self._value(kind)
            else:
                self._pass(kind)
        return found

    def tensors(self) -> tuple[list[Tensor], int]:
        alignment = self.metadata(only="general.alignment").get("general.alignment", _ALIGNMENT)
        found = []
        for _ in range(self._count):
            self._string()  # its name
            shape = tuple(self._scalar("Q") for _ in range(self._scalar("I")))
            found.append(Tensor(shape, kind=self._scalar("I"), offset=self._scalar("Q")))
        return found, -(-self._at // alignment) * alignment

    def _scalar(self, letter: str) -> Any:
        layout = struct.Struct("<" + letter)
        (value,) = layout.unpack_from(self._content, self._at)
        self._at += layout.size
        return value

    def _string(self) -> str:
        return self._strings(1)[0]

    def _strings(self, count: int) -> list[str]:
        content, at = self._content, self._at
        unpack: Callable[[Any, int], tuple[int]] = _U64.unpack_from
        strings = []
        for _ in range(count):
            start = at + 8
            at = start + unpack(content, at)[0]
            if at > len(content):
                raise ValueError("it ends inside its header")
            # model files hold the odd token that is no UTF-8
            strings.append(content[start:at].decode("utf-8", "replace"))
        self._at = at
        return strings

    def _pass(self, kind: int, count: int = 1) -> None:
        """Over so many values of the kind; the same files are refused as by reading them."""
        if kind in _SCALARS:
            self._at += count * struct.calcsize("<" + _SCALARS[kind])
        elif kind == _STRING:
            self._pass_strings(count)
        elif kind == _ARRAY:
            for _ in range(count):
                self._pass(self._scalar("I"), self._scalar("Q"))
        else:
            raise ValueError(f"value type {kind} is unknown")
        if self._at > len(self._content):
            raise ValueError("it ends inside its header")

    def _pass_strings(self, count: int) -> None:
        content, at = self._content, self._at
        unpack: Callable[[Any, int], tuple[int]] = _U64.unpack_from
        for _ in range(count):
            at += 8 + unpack(content, at)[0]
        self._at = at

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array(self._scalar("I"), self._scalar("Q"))
        if kind not in _SCALARS:
            raise ValueError(f"value type {kind} is unknown")
        return self._scalar(_SCALARS[kind])

    def _array(self, kind: int, count: int) -> list[Any]:
        if kind == _STRING:
            return self._strings(count)
        if kind not in _SCALARS:
            return [self._value(kind) for _ in range(count)]
        layout = struct.Struct(f"<{count}{_SCALARS[kind]}")
        values = list(layout.unpack_from(self._content, self._at))
        self._at += layout.size
        return values
