"""A model that no worker there is has an engine for: to try again helps nobody, so it is said what would."""

from __future__ import annotations

from collections.abc import Collection


def never_served(model: str, needed: Collection[str], there: Collection[str]) -> str:
    """Why the model cannot be served, whatever is loaded; empty: it can, or nothing is known.

    `needed`: engines that can serve it, of which one is enough; `there`: those of all workers that are up."""
    if not needed or not there or not set(needed).isdisjoint(there):
        return ""
    needs, have = " or ".join(sorted(needed)), " and ".join(sorted(there))
    return (
        f"no worker can serve {model}: it needs {needs}, and the workers that are up have {have}; start "
        "a worker with an engine that the model's catalog entry names, or add one of theirs to the entry"
    )
