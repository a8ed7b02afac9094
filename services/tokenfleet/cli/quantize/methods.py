"""What a model can be quantized to, and for which engine that is."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from tokenfleet.cli.errors import CliError


@dataclass(frozen=True, slots=True)
class Method:
    """`grouped`: some weights of a row share a scale, so that rows have to divide by their number."""

    name: str
    makes: Literal["gguf", "folder"]
    about: str
    # of a gguf: its type, what is taken where rows do not divide by 256, and its number in llama.cpp's list
    type: str = ""
    otherwise: str = ""
    file_type: int = 0
    # of a folder, in AutoRound's words
    scheme: str = ""
    format: str = ""
    grouped: bool = False

    @property
    def engine(self) -> str:
        return "llamacpp" if self.makes == "gguf" else "vllm"


def _gguf(name: str, file_type: int, about: str, otherwise: str = "") -> Method:
    return Method(name, "gguf", about, name.upper(), otherwise, file_type)


_ALL = (
    _gguf("q8_0", 7, "8 bits; next to no loss"),
    _gguf("q6_k", 18, "6.6 bits", "Q8_0"),
    _gguf("q5_k", 16, "5.5 bits", "Q5_1"),
    _gguf("q5_1", 9, "6 bits, with an offset"),
    _gguf("q5_0", 8, "5.5 bits"),
    _gguf("q4_k", 14, "4.5 bits; better than q4_0 at its size", "Q5_0"),
    _gguf("q4_1", 3, "5 bits, with an offset"),
    _gguf("q4_0", 2, "4.5 bits"),
    Method(
        "w8a8",
        "folder",
        "compressed-tensors: weights and activations in 8-bit integers",
        scheme="INT8_W8A8",
        format="llm_compressor",
    ),
    Method(
        "w4a16",
        "folder",
        "compressed-tensors: weights in 4 bits",
        scheme="W4A16",
        format="llm_compressor",
        grouped=True,
    ),
    Method("gptq", "folder", "4 bits in GPTQ's format", scheme="W4A16", format="auto_gptq", grouped=True),
    Method("awq", "folder", "4 bits in AWQ's format", scheme="W4A16", format="auto_awq", grouped=True),
)
METHODS = {method.name: method for method in _ALL}


def find_method(name: str) -> Method:
    """Raises CliError that lists what there is."""
    method = METHODS.get(name.lower())
    if method is None:
        near = difflib.get_close_matches(name.lower(), METHODS, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise CliError(f"there is no method {name!r}; there are {', '.join(METHODS)}.{meant}")
    return method


def group_size(method: Method, wanted: int, widths: set[int]) -> int:
    """Weights that share a scale: the wanted number, or the largest usual one that divides all rows; 0: none.

    Raises CliError that names the rows which cannot be cut.
    """
    if not method.grouped:
        return 0
    for size in (wanted,) if wanted else (128, 64, 32):
        if all(width % size == 0 for width in widths):
            return size
    sizes = f"{wanted}" if wanted else "128, 64 or 32"
    odd = ", ".join(str(width) for width in sorted(widths))
    raise CliError(f"{method.name} shares a scale between {sizes} weights, but this model's rows have {odd}")
