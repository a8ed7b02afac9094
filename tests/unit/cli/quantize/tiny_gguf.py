"""A gguf of a few tensors, written by the `gguf` package."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests import tiny_model


def write(path: Path, widths: tuple[int, ...] = (256,), types: Any = gguf.GGMLQuantizationType.F32) -> Path:
    """The embedding and a layer for each width, and a vector; a real vocabulary in the header."""
    random = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in tiny_model.metadata().items():
        if key == "general.architecture":
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    shapes = {"token_embd.weight": (16, widths[0]), "output_norm.weight": (widths[0],)}
    shapes |= {f"blk.{number}.ffn_down.weight": (8, width) for number, width in enumerate(widths)}
    for name, shape in shapes.items():
        weights = random.standard_normal(shape).astype(np.float32)
        if len(shape) > 1 and types != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, gguf.quantize(weights, types), raw_dtype=types)
        else:
            writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
