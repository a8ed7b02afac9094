"""A folder in Hugging Face's layout out of a gguf, for engines that read nothing else.

One catalog entry thereby serves llama.cpp and vLLM alike, with one tokenizer. The weights become bf16,
whatever they were: what a quantization lost stays lost, and the file grows. Only the Llama architecture
(which Mistral's and SmolLM's models share) is known; another is refused by its name, since a wrong layout
gives a model that speaks, wrongly.

The work takes twice the memory of the largest tensor and numpy; it is run as a process of its own, so that no
service pays for either:  python -m tokenfleet.runtime.models.gguf_folder GGUF FOLDER  with the tokenizer's
bundle as JSON on standard input.
"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.last_words import last_words
from tokenfleet.runtime.models.bundle import TOKENIZER_FILE, TokenizerBundle, load_failed
from tokenfleet.runtime.models.gguf_metadata import read_metadata

# Grows when the conversion changes, so that what an older one left in the cache is not used.
CONVERTER_VERSION = 1
WEIGHTS_FILE = "model.safetensors"

_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(gguf: Path, bundle: TokenizerBundle, folder: Path) -> None:
    """Fills the folder, in a process of its own. Raises FleetError LOAD_FAILED with what that said."""
    config_of(read_metadata(gguf), bundle)  # what cannot be converted is told at once
    told = json.dumps({**asdict(bundle), "tokenizer_json": str(bundle.tokenizer_json)})
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(gguf), str(folder)],
        input=told,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise load_failed(f"{gguf} cannot be converted: {last_words(done.stderr, done.returncode)}")


def config_of(metadata: dict[str, Any], bundle: TokenizerBundle) -> dict[str, Any]:
    """`config.json`. Raises FleetError for an architecture that is not known."""
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise _not_known(f"architecture {architecture!r}")

    def value(key: str, default: Any = None) -> Any:
        return metadata.get(f"llama.{key}", default)

    if value("expert_count"):
        raise _not_known("a mixture of experts")
    if value("rope.scaling.type", "none") != "none":
        raise _not_known(f"rope scaling {value('rope.scaling.type')!r}")
    heads = value("attention.head_count")
    width = value("embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("attention.head_count_kv", heads),
        "head_dim": value("rope.dimension_count", width // heads),
        "max_position_embeddings": value("context_length"),
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "rope_theta": value("rope.freq_base", 10000.0),
        "vocab_size": value("vocab_size", len(metadata["tokenizer.ggml.tokens"])),
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": bundle.bos_token_id,
        "eos_token_id": list(bundle.eos_token_ids),
        "torch_dtype": "bfloat16",
    }


def tensor_name(name: str) -> str:
    """What a gguf's tensor is called in the folder. Raises FleetError for one that is not known."""
    if name in _TENSORS:
        return _TENSORS[name]
    match name.split("."):
        case ["blk", number, part, "weight"] if part in _BLOCK_TENSORS:
            return f"model.layers.{number}.{_BLOCK_TENSORS[part]}.weight"
    raise _not_known(f"tensor {name!r}")


def unpermuted(weights: Any, heads: int) -> Any:
    """Rows of a query or key projection in the order in which they were published: llama.cpp pairs the two
    halves of each head's rotation next to each other."""
    rows, columns = weights.shape
    return weights.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def bfloat16(weights: Any) -> Any:
    """float32 as the 16 bits of the nearest bfloat16, ties to even."""
    import numpy as np

    bits = np.ascontiguousarray(weights, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _not_known(what: str) -> FleetError:
    return load_failed(
        f"a gguf with {what} cannot be turned into the folder that this engine reads: name the model's own "
        f"folder (safetensors, config.json) as the entry's source, or run it with engine llamacpp"
    )


def _fill(gguf: Path, bundle: TokenizerBundle, folder: Path) -> None:
    metadata = read_metadata(gguf)
    config = config_of(metadata, bundle)
    tied = _write_weights(gguf, config, folder / WEIGHTS_FILE)
    shutil.copyfile(bundle.tokenizer_json, folder / TOKENIZER_FILE)
    _write_json(folder / "config.json", {**config, "tie_word_embeddings": tied})
    _write_json(
        folder / "generation_config.json",
        {"bos_token_id": bundle.bos_token_id, "eos_token_id": list(bundle.eos_token_ids)},
    )
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": bundle.bos_token,
            "eos_token": bundle.eos_token,
            "model_max_length": config["max_position_embeddings"],
            "chat_template": bundle.chat_template,
        },
    )


def _write_weights(gguf: Path, config: dict[str, Any], path: Path) -> bool:
    """Tensor after tensor; answers whether the output layer is the embedding's own."""
    from gguf import GGUFReader

    tensors = GGUFReader(gguf).tensors
    names = [tensor_name(tensor.name) for tensor in tensors]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in zip(names, tensors, strict=True):
        shape = [int(size) for size in reversed(tensor.shape)]
        end = offset + 2 * int(tensor.n_elements)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for content in _contents(tensors, config):
            file.write(content)
    return "lm_head.weight" not in names


def _contents(tensors: Any, config: dict[str, Any]) -> Iterator[Any]:
    from gguf import dequantize

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for tensor in tensors:
        weights = dequantize(tensor.data, tensor.tensor_type)
        part = tensor.name.split(".")[-2]
        if part in heads:
            weights = unpermuted(weights, heads[part])
        yield bfloat16(weights).tobytes()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def main() -> None:
    told = json.loads(sys.stdin.read())
    told["tokenizer_json"] = Path(told["tokenizer_json"])
    told["eos_token_ids"] = tuple(told["eos_token_ids"])
    try:
        _fill(Path(sys.argv[1]), TokenizerBundle(**told), Path(sys.argv[2]))
    except ImportError as error:
        sys.exit(f"{error}: pip install 'tokenfleet[worker-vllm]'")
    except FleetError as error:
        sys.exit(error.message)


if __name__ == "__main__":
    main()
