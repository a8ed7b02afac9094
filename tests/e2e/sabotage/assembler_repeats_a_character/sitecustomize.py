"""A worker whose assembler, on a resume, sends the last character again that the client already has."""

import sys
from collections.abc import Sequence

if "tokenfleet.worker" in sys.orig_argv:
    from tokenfleet.worker.text_assembler import TextAssembler

    _resume = TextAssembler.resume

    def _stuttering(self: TextAssembler, ids: Sequence[int], emitted_chars: int) -> str:
        return _resume(self, ids, max(0, emitted_chars - 1))

    TextAssembler.resume = _stuttering  # type: ignore[method-assign]
