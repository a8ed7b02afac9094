"""Engine arguments out of a catalog entry, checked: an unknown or wrong one fails the load and is named."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tokenfleet.worker.engines.base import load_failed


class EngineArguments(BaseModel):
    """Base of each engine's own arguments."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Arguments = TypeVar("Arguments", bound=EngineArguments)


def parse_arguments(engine: str, cls: type[Arguments], given: Mapping[str, object]) -> Arguments:
    """Raises FleetError LOAD_FAILED that names the argument at fault and what would do."""
    try:
        return cls.model_validate(dict(given))
    except ValidationError as error:
        problems = "; ".join(
            _explain(cls, item["loc"], item["msg"], item["input"]) for item in error.errors()
        )
        raise load_failed(f"engine {engine}: {problems}") from error


def _explain(cls: type[EngineArguments], loc: tuple[int | str, ...], message: str, value: object) -> str:
    name = ".".join(str(part) for part in loc)
    if message != "Extra inputs are not permitted" or len(loc) > 1:
        return f"argument {name}: {message} (got {value!r})"
    near = difflib.get_close_matches(name, cls.model_fields, n=1)
    known = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(cls.model_fields))}"
    return f"argument {name} is unknown; {known}"
