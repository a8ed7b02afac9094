"""What tells one conversation from all others, from its first turn to its last.

The instructions in front do not: every conversation of an application begins with the same. Nor may anything
be looked at that a later turn changes. So it is the instructions and the first message behind them.
"""

from __future__ import annotations

from collections.abc import Iterable

# Of each of the two; more would tell no more conversations apart.
AFFINITY_CHARS = 4096

_INSTRUCTIONS = ("system", "developer")


def conversation_affinity(messages: Iterable[tuple[str, str]]) -> str:
    """Of roles and texts. Not all need be read: the first message that is no instruction is the last one."""
    instructions, opening = "", ""
    for role, text in messages:
        if role not in _INSTRUCTIONS:
            opening = text[:AFFINITY_CHARS]
            break
        if len(instructions) < AFFINITY_CHARS:
            instructions += text[: AFFINITY_CHARS - len(instructions)]
    return f"{instructions}\0{opening}"
