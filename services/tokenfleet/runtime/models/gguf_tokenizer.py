"""A `tokenizer.json` out of a gguf's metadata.

A gguf names its pre-tokenizer (`tokenizer.ggml.pre`) and leaves the rules to llama.cpp's source. The table
below says the same in the terms of the `tokenizers` library; a kind that is not in it is refused, since a
wrong split gives ids that are almost right, which is the worst kind of wrong.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.models.bundle import TOKENIZER_FILE, TokenizerBundle, load_failed
from tokenfleet.runtime.models.gguf_metadata import read_metadata
from tokenfleet.v1 import common_pb2

# Grows when the conversion changes, so that what an older one left in the cache is not used.
CONVERTER_VERSION = 1

Component = dict[str, Any]

_CONTROL, _USER_DEFINED = 3, 4

# Tokens that llama.cpp takes for the end of an answer whatever the metadata declares.
_END_TOKENS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<EOT>",
)

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _byte_level(use_regex: bool) -> Component:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split_by(pattern: str) -> list[Component]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [split, _byte_level(False)]


_GPT2 = [_byte_level(True)]
_DIGITS_THEN_GPT2 = [{"type": "Digits", "individual_digits": True}, _byte_level(True)]

_PRE_TOKENIZERS: dict[str, list[Component]] = {
    **dict.fromkeys(("gpt-2", "mpt", "olmo", "jais", "phi-2"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), _DIGITS_THEN_GPT2),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "smaug-bpe", "dbrx"), _split_by(_LLAMA3)),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen"), _split_by(_QWEN2)),
}
# In these a pre-token that is a token as a whole is not merged from its parts.
_IGNORE_MERGES = frozenset(("llama3", "llama-v3", "llama-bpe", "falcon3"))


def convert(gguf: Path, folder: Path) -> TokenizerBundle:
    """Writes `tokenizer.json` into the folder and answers with what belongs to it."""
    metadata = read_metadata(gguf)
    try:
        content = json.dumps(_tokenizer(metadata), ensure_ascii=False).encode()
        bundle = _bundle(metadata, folder / TOKENIZER_FILE, hashlib.sha256(content).hexdigest())
    except (KeyError, IndexError) as error:
        raise load_failed(f"{gguf}: its metadata lacks {error}") from error
    bundle.tokenizer_json.write_bytes(content)
    return bundle


def _tokenizer(metadata: dict[str, Any]) -> Component:
    kind = metadata["tokenizer.ggml.model"]
    pre = metadata.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or pre not in _PRE_TOKENIZERS:
        raise FleetError(
            common_pb2.REASON_UNSUPPORTED,
            f"the gguf's tokenizer ({kind}, pre-tokenizer {pre}) has no conversion; give the catalog entry a "
            f"tokenizer_source with a tokenizer.json. Known: gpt2 with {', '.join(sorted(_PRE_TOKENIZERS))}",
            field="tokenizer_source",
        )
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(tokens, metadata.get("tokenizer.ggml.token_type", [])),
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PRE_TOKENIZERS[pre]},
        "post_processor": _post_processor(metadata, tokens),
        "decoder": _byte_level(True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre in _IGNORE_MERGES,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": metadata["tokenizer.ggml.merges"],
        },
    }


def _added_tokens(tokens: list[str], types: list[int]) -> list[Component]:
    return [
        {
            "id": index,
            "content": tokens[index],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == _CONTROL,
        }
        for index, kind in enumerate(types)
        if kind in (_CONTROL, _USER_DEFINED)
    ]


def _post_processor(metadata: dict[str, Any], tokens: list[str]) -> Component | None:
    """Puts the begin and end tokens around plain text where the model was trained with them."""
    around: list[Component] = [{"Sequence": {"id": "A", "type_id": 0}}]
    used: dict[str, Component] = {}

    def special(key: str) -> Component:
        index = metadata[f"tokenizer.ggml.{key}_token_id"]
        token = tokens[index]
        used[token] = {"id": token, "ids": [index], "tokens": [token]}
        return {"SpecialToken": {"id": token, "type_id": 0}}

    if metadata.get("tokenizer.ggml.add_bos_token"):
        around.insert(0, special("bos"))
    if metadata.get("tokenizer.ggml.add_eos_token"):
        around.append(special("eos"))
    if not used:
        return None
    pair = [*around, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": around, "pair": pair, "special_tokens": used}


def _bundle(metadata: dict[str, Any], path: Path, digest: str) -> TokenizerBundle:
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    bos: int | None = metadata.get("tokenizer.ggml.bos_token_id")
    eos: int | None = metadata.get("tokenizer.ggml.eos_token_id")
    context = metadata.get(f"{metadata['general.architecture']}.context_length", 0)
    return TokenizerBundle(
        tokenizer_json=path,
        chat_template=metadata.get("tokenizer.chat_template"),
        bos_token=None if bos is None else tokens[bos],
        eos_token=None if eos is None else tokens[eos],
        bos_token_id=bos,
        eos_token_ids=_end_ids(metadata, tokens),
        digest=digest,
        context_length=int(context),
    )


def _end_ids(metadata: dict[str, Any], tokens: list[str]) -> tuple[int, ...]:
    declared = (metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom"))
    types = metadata.get("tokenizer.ggml.token_type", [])
    special = {tokens[index]: index for index, kind in enumerate(types) if kind == _CONTROL}
    known = (special.get(token) for token in _END_TOKENS)
    return tuple(dict.fromkeys(index for index in (*declared, *known) if index is not None))
