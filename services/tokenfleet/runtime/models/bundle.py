"""What a tokenizer consists of, wherever it came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2

TOKENIZER_FILE = "tokenizer.json"
_STORED_FILE = "bundle.json"


@dataclass(frozen=True, slots=True)
class TokenizerBundle:
    """A tokenizer.json and what chat templates, engines and limits need beside it."""

    tokenizer_json: Path
    chat_template: str | None
    bos_token: str | None
    eos_token: str | None
    bos_token_id: int | None
    # All ids after which an answer is over; the first is the declared one.
    eos_token_ids: tuple[int, ...]
    digest: str  # sha256 of tokenizer.json, hexadecimal
    context_length: int  # tokens; 0: the model does not say


def store_bundle(bundle: TokenizerBundle, folder: Path) -> None:
    """Writes everything but the tokenizer.json itself, which already lies in the folder."""
    values = {name: getattr(bundle, name) for name in TokenizerBundle.__slots__ if name != "tokenizer_json"}
    (folder / _STORED_FILE).write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")


def stored_bundle(folder: Path) -> TokenizerBundle | None:
    """The bundle that `store_bundle` left, or None."""
    try:
        values = json.loads((folder / _STORED_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    values["eos_token_ids"] = tuple(values["eos_token_ids"])
    return TokenizerBundle(tokenizer_json=folder / TOKENIZER_FILE, **values)


def folder_bundle(folder: Path) -> TokenizerBundle:
    """The tokenizer of a folder in Hugging Face's layout."""
    path = folder / TOKENIZER_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise load_failed(f"{folder} holds no readable {TOKENIZER_FILE}: {error}") from error
    config = _read_json(folder / "tokenizer_config.json")
    model = _read_json(folder / "config.json")
    generation = _read_json(folder / "generation_config.json")
    ids = _token_ids(_read_json(path))
    bos, eos = _token_text(config.get("bos_token")), _token_text(config.get("eos_token"))
    declared = [ids[eos]] if eos in ids else []
    return TokenizerBundle(
        tokenizer_json=path,
        chat_template=_chat_template(folder, config),
        bos_token=bos,
        eos_token=eos,
        bos_token_id=ids.get(bos) if bos else None,
        eos_token_ids=_unique([*declared, *_id_list(generation), *_id_list(model)]),
        digest=hashlib.sha256(content).hexdigest(),
        context_length=int(model.get("max_position_embeddings") or 0),
    )


def load_failed(message: str) -> FleetError:
    return FleetError(common_pb2.REASON_LOAD_FAILED, message)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise load_failed(f"{path} cannot be read: {error}") from error
    if not isinstance(loaded, dict):
        raise load_failed(f"{path}: expected a JSON object")
    return loaded


def _token_ids(tokenizer: dict[str, Any]) -> dict[str | None, int]:
    return {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or ()}


def _token_text(value: object) -> str | None:
    """A token in tokenizer_config.json: a string, or an object with its content."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    try:
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except FileNotFoundError:
        template = config.get("chat_template")
    if isinstance(template, list):  # several named templates
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _id_list(config: dict[str, Any]) -> Sequence[int]:
    value = config.get("eos_token_id")
    if isinstance(value, int):
        return (value,)
    return tuple(value) if isinstance(value, list) else ()


def _unique(ids: Sequence[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(ids))
