"""Writes what transformers makes of the cases; needed when a case has changed or is new.

    pip install transformers==5.23.0 jinja2
    python -m tests.unit.tokenizer.reference TOKENIZER_JSON

in an environment of its own: transformers is the reference, and no dependency. TOKENIZER_JSON is the default
catalog's, `~/.cache/tokenfleet/tokenizers/*/tokenizer.json` once the model has been used.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from tests.unit.tokenizer.reference.cases import BOS, EOS, OPTIONS, Case, cases, digest

EXPECTED = Path(__file__).parent / "expected.json"


def main(tokenizer_json: str) -> None:
    transformers: Any = import_module("transformers")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=tokenizer_json)
    tokenizer.bos_token, tokenizer.eos_token = BOS, EOS
    plain = transformers.PreTrainedTokenizerFast(tokenizer_file=tokenizer_json)
    expected = {case.name: _outcome(tokenizer, plain, case) for case in cases()}
    content = {
        "transformers": metadata.version("transformers"),
        "tokenizers": metadata.version("tokenizers"),
        "cases": digest(),
        "expected": expected,
    }
    EXPECTED.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _outcome(tokenizer: Any, plain: Any, case: Case) -> dict[str, Any]:
    """The prompt's text, and its ids for the default catalog's template; or the template's complaint."""
    given = {"chat_template": case.source, **OPTIONS[case.options]}
    try:
        text = tokenizer.apply_chat_template(case.messages, tokenize=False, **given)
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}
    if case.template != "smollm2":
        return {"text": text}
    ids = plain.apply_chat_template(case.messages, tokenize=True, return_dict=False, **given)
    return {"text": text, "ids": " ".join(map(str, ids))}


if __name__ == "__main__":
    main(sys.argv[1])
