"""The small real model in other quantizations, made once out of the one that is fetched.

Three files of one model are three models to a fleet: their sizes differ, and so do their answers. To take
seconds, only the first third of the layers is quantized anew. The files are kept in the user's cache, beside
what is fetched.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, ReaderTensor
from gguf.quants import dequantize, quantize

from tests import real_model
from tokenfleet.runtime.models import default_cache_dir

KINDS = {"q8_0": GGMLQuantizationType.Q8_0, "q4_0": GGMLQuantizationType.Q4_0}
LAYERS = 10  # of 30
# GGML's own numbers for the kind of a whole file.
_FILE_TYPES = {"q8_0": 7, "q4_0": 2}
_OWN_FIELDS = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.architecture")


def original() -> Path:
    """The file as it is published, Q4_1."""
    return real_model.cache().weights(real_model.spec())


def variant(kind: str) -> Path:
    """The file in that quantization, "q8_0" or "q4_0"; made if it is not there. It takes some seconds."""
    path = default_cache_dir() / "test-variants" / f"{real_model.DIGEST[:16]}.{LAYERS}.{kind}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}")
        _requantize(GGUFReader(original()), fresh, kind)
        fresh.replace(path)
    return path


def _requantize(source: GGUFReader, path: Path, kind: str) -> None:
    architecture = source.get_field("general.architecture")
    assert architecture is not None
    writer = GGUFWriter(path, str(architecture.contents()))
    for field in source.fields.values():
        if field.name not in _OWN_FIELDS:
            _copy_field(writer, field, _FILE_TYPES[kind] if field.name == "general.file_type" else None)
    for tensor in source.tensors:
        data, stored_as = _converted(tensor, KINDS[kind])
        writer.add_tensor(tensor.name, data, raw_dtype=stored_as)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _copy_field(writer: GGUFWriter, field: Any, value: int | None) -> None:
    kind = field.types[0]
    inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
    writer.add_key_value(field.name, field.contents() if value is None else value, kind, sub_type=inner)


def _converted(
    tensor: ReaderTensor, kind: GGMLQuantizationType
) -> tuple[np.ndarray[Any, Any], GGMLQuantizationType]:
    """Vectors stay as they are, as llama.cpp's own quantizer leaves them."""
    layer = re.match(r"blk\.(\d+)\.", tensor.name)
    if len(tensor.shape) < 2 or layer is None or int(layer[1]) >= LAYERS:
        return tensor.data, tensor.tensor_type
    return quantize(dequantize(tensor.data, tensor.tensor_type), kind), kind
