"""Whether weights are whole, told by their own headers before an engine is given them.

A truncated file makes engines die in many ways, some of them minutes later and without a word of the cause.
Both formats say in their first kilobytes where each tensor lies, so that a missing end shows at once.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from tokenfleet.runtime.models.bundle import load_failed
from tokenfleet.runtime.models.gguf_metadata import Tensor, read_tensors

_INDEX = "model.safetensors.index.json"
_LARGEST_HEADER = 100_000_000  # bytes; the format's own limit

# Values in a block, and its bytes, by ggml's number of the type. Of types that are not here only the begin
# is checked.
_BLOCKS = {
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
    20: (32, 18),  # IQ4_NL
    23: (256, 136),  # IQ4_XS
    24: (1, 1),  # I8
    25: (1, 2),  # I16
    26: (1, 4),  # I32
    27: (1, 8),  # I64
    28: (1, 8),  # F64
    30: (1, 2),  # BF16
    39: (32, 17),  # MXFP4
}


def check_weights(path: Path) -> None:
    """Raises FleetError (LOAD_FAILED) that says what is broken; formats that it does not know pass."""
    if path.is_dir():
        _check_folder(path)
    elif path.suffix == ".gguf":
        _check_gguf(path)
    elif path.suffix == ".safetensors":
        _check_safetensors(path)


def _check_gguf(path: Path) -> None:
    tensors, begin = read_tensors(path)
    size = path.stat().st_size
    needed = max((begin + tensor.offset + _size(tensor) for tensor in tensors), default=0)
    if size < needed:
        raise _truncated(path, size, needed)


def _size(tensor: Tensor) -> int:
    values, size = _BLOCKS.get(tensor.kind, (1, 0))
    return math.prod(tensor.shape) // values * size


def _check_folder(folder: Path) -> None:
    index = folder / _INDEX
    if index.is_file():
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise load_failed(f"{index} is no readable index: {error!r}") from error
        missing = sorted(name for name in named if not (folder / name).is_file())
        if missing:
            raise load_failed(f"{folder} lacks {', '.join(missing)}, which {_INDEX} names: fetch it again")
    for file in sorted(folder.glob("*.safetensors")):
        _check_safetensors(file)


def _check_safetensors(path: Path) -> None:
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, _LARGEST_HEADER):
                raise ValueError(f"its header claims {length} bytes")
            header: dict[str, Any] = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error) as error:
        raise load_failed(f"{path} is no readable safetensors file: {error}") from error
    needed = 8 + length + max(ends, default=0)
    if size < needed:
        raise _truncated(path, size, needed)


def _truncated(path: Path, size: int, needed: int) -> Exception:
    return load_failed(
        f"{path} is truncated: it has {size} bytes, and its own header says that its tensors reach to byte "
        f"{needed}. Fetch or copy it again"
    )
