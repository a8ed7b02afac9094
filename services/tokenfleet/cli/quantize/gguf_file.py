"""A gguf with other types: every large tensor through float32 into the type that was asked for.

The arithmetic is llama.cpp's own, out of the library that the engine brings, or, for the simple types, the
`gguf` package's where that is not installed. Vectors stay as they are. The embeddings, which small models use
as their output layer too, and an output layer get at least six bits, because every token's choice passes
through them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenfleet.cli.errors import CliError
from tokenfleet.cli.quantize.methods import Method

_OUTPUTS = ("token_embd.weight", "output.weight")
# What the output layer gets instead of anything coarser.
_OUTPUT_TYPE = ("Q6_K", "Q8_0")
_COARSER = ("Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K")
_SIMPLE = ("F32", "F16", "BF16", "Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1")

# tensors done, tensors in all
Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Outcome:
    """How many tensors became what."""

    types: dict[str, int] = field(default_factory=dict)
    fell_back: int = 0

    def count(self, name: str) -> None:
        self.types[name] = self.types.get(name, 0) + 1


def quantize_gguf(source: Path, target: Path, method: Method, progress: Progress) -> Outcome:
    """Writes `target`. Raises CliError for what cannot be quantized this way."""
    import gguf

    try:
        reader = gguf.GGUFReader(source)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise CliError(f"{source} is no readable gguf file: {error}") from error
    plan = {tensor.name: _type_for(tensor, method) for tensor in reader.tensors}
    _refuse_if_useless(reader.tensors, method)
    if not any(plan.values()):
        raise CliError(f"{source} is {method.name} already: nothing would change")
    writer = gguf.GGUFWriter(target, _text(reader, "general.architecture"))
    with closing(writer):
        _copy_metadata(gguf, reader, writer, method)
        return _write(gguf, reader, writer, plan, progress, method)


def _write(
    gguf: Any, reader: Any, writer: Any, plan: dict[str, str | None], progress: Progress, method: Method
) -> Outcome:
    outcome = Outcome()
    for tensor in reader.tensors:
        name = plan[tensor.name]
        kind = tensor.tensor_type if name is None else gguf.GGMLQuantizationType[name]
        shape = [int(size) for size in reversed(tensor.shape)]
        bytes_ = _bytes(gguf, shape, kind)
        writer.add_tensor_info(tensor.name, _byte_shape(gguf, shape, kind), _numpy_type(kind), bytes_, kind)
        outcome.count(kind.name)
        outcome.fell_back += name is not None and name == method.otherwise
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    encode = _encoder(gguf)
    for number, tensor in enumerate(reader.tensors):
        name = plan[tensor.name]
        if name is None:
            writer.write_tensor_data(tensor.data)
        else:
            weights = gguf.dequantize(tensor.data, tensor.tensor_type)
            writer.write_tensor_data(encode(weights, gguf.GGMLQuantizationType[name]))
        progress(number + 1, len(reader.tensors))
    return outcome


def _type_for(tensor: Any, method: Method) -> str | None:
    """None: as it is."""
    if len(tensor.shape) < 2 or not tensor.name.endswith(".weight"):
        return None
    width = int(tensor.shape[0])
    wanted, otherwise = method.type, method.otherwise
    if tensor.name in _OUTPUTS and wanted in _COARSER:
        wanted, otherwise = _OUTPUT_TYPE
    if wanted.endswith("_K") and width % 256:
        wanted = otherwise
    if width % 32:
        wanted = "F16"
    return None if wanted == tensor.tensor_type.name else wanted


def _refuse_if_useless(tensors: Any, method: Method) -> None:
    rows = {int(tensor.shape[0]) for tensor in tensors if len(tensor.shape) > 1}
    divisor = 256 if method.type.endswith("_K") else 32
    if all(width % divisor for width in rows):
        others = "q8_0, q5_0 or q4_0" if divisor == 256 and any(width % 32 == 0 for width in rows) else "none"
        raise CliError(
            f"{method.name} packs {divisor} weights of a row together, and no row of this model divides by "
            f"that: they have {', '.join(map(str, sorted(rows)))}. What fits: {others}"
        )


def _copy_metadata(gguf: Any, reader: Any, writer: Any, method: Method) -> None:
    """All keys but those that the writer sets itself, and the name of the type."""
    for key, found in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        kind = found.types[0]
        inner = found.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, found.contents(), kind, sub_type=inner)
    writer.add_file_type(method.file_type)
    if "general.quantization_version" not in reader.fields:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _text(reader: Any, key: str) -> str:
    found = reader.get_field(key)
    if found is None:
        raise CliError(f"the gguf has no {key}: it is no model")
    return str(found.contents())


def _bytes(gguf: Any, shape: list[int], kind: Any) -> int:
    size, width = gguf.GGML_QUANT_SIZES[kind]
    count = 1
    for length in shape:
        count *= length
    return int(count // size * width)


def _byte_shape(gguf: Any, shape: list[int], kind: Any) -> list[int]:
    if kind.name in ("F32", "F16"):
        return shape
    return list(gguf.quants.quant_shape_to_byte_shape(shape, kind))


def _numpy_type(kind: Any) -> Any:
    import numpy as np

    return np.dtype({"F32": np.float32, "F16": np.float16}.get(kind.name, np.uint8))


def _encoder(gguf: Any) -> Callable[[Any, Any], Any]:
    """From float32 rows to the bytes of a type."""
    library = _llama_library()

    def encode(weights: Any, kind: Any) -> Any:
        import numpy as np

        if library is None or kind.name in ("F32", "F16", "BF16"):
            if kind.name not in _SIMPLE:
                raise CliError(
                    f"{kind.name} needs llama.cpp's own code: pip install 'tokenfleet[worker-llamacpp]'"
                )
            return gguf.quantize(weights, kind)
        rows = np.ascontiguousarray(weights.reshape(-1, weights.shape[-1]), dtype=np.float32)
        size, width = gguf.GGML_QUANT_SIZES[kind]
        packed = np.empty((rows.shape[0], rows.shape[1] // size * width), dtype=np.uint8)
        library.ggml_quantize_chunk(
            int(kind), rows.ctypes.data, packed.ctypes.data, 0, rows.shape[0], rows.shape[1], None
        )
        return packed.reshape(*weights.shape[:-1], -1)

    return encode


def _llama_library() -> Any:
    """The library that the engine llamacpp runs, for its quantizer; None where it is not installed."""
    try:
        from xllamacpp import xllamacpp as compiled
    except ImportError:
        return None
    library = ctypes.CDLL(compiled.__file__)
    quantize = library.ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    return library
