"""A model file of a few kilobytes: a real gguf header with a small byte-level vocabulary, no real weights."""

import json
import struct
from pathlib import Path
from typing import Any

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("h e", "l l", "he ll", "hell o", "Ġ w", "Ġw o", "r l", "rl d", "Ġwo rld", "e x", "ex t", "t ext")

# SmolLM2's: it inserts a system message of its own.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_U32, _BOOL, _STRING, _ARRAY, _I32 = 4, 7, 8, 9, 5
_I8_TENSOR = 24


def tokens() -> list[str]:
    """Special tokens, one token for each byte, one for each merge."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [chr(0x100 + index) for index in range(256 - len(printable))]
    merged = [merge.replace(" ", "") for merge in MERGES]
    return [*SPECIAL, *map(chr, printable), *others, *merged]


def metadata() -> dict[str, Any]:
    vocabulary = tokens()
    return {
        "general.architecture": "llama",
        "llama.context_length": 512,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": vocabulary,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in vocabulary],
        "tokenizer.ggml.merges": list(MERGES),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def write_gguf(path: Path, **changes: Any) -> Path:
    """`changes` replace keys of the metadata; None removes one."""
    values = {**metadata(), **changes}
    values = {key: value for key, value in values.items() if value is not None}
    path.write_bytes(_header(values, tensors=0))
    return path


def gguf(weights: bytes) -> bytes:
    """A whole file, whose only tensor is these bytes."""
    tensor = struct.pack("<IQIQ", 1, len(weights), _I8_TENSOR, 0)
    header = _header(metadata(), tensors=1) + _string("weights") + tensor
    return header + bytes(-len(header) % 32) + weights


def safetensors(weights: bytes) -> bytes:
    """A whole file, whose only tensor is these bytes."""
    tensor = {"dtype": "I8", "shape": [len(weights)], "data_offsets": [0, len(weights)]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "weights": tensor}).encode()
    return struct.pack("<Q", len(header)) + header + weights


def _header(values: dict[str, Any], tensors: int) -> bytes:
    content = [b"GGUF", struct.pack("<IQQ", 3, tensors, len(values))]
    for key, value in values.items():
        kind, packed = _packed(value)
        content += [_string(key), struct.pack("<I", kind), packed]
    return b"".join(content)


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _packed(value: Any) -> tuple[int, bytes]:
    match value:
        case bool():
            return _BOOL, struct.pack("<?", value)
        case int():
            return _U32, struct.pack("<I", value)
        case str():
            return _STRING, _string(value)
        case [str(), *_]:
            return _ARRAY, struct.pack("<IQ", _STRING, len(value)) + b"".join(map(_string, value))
        case _:
            return _ARRAY, struct.pack(f"<IQ{len(value)}i", _I32, len(value), *value)
