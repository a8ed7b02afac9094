"""Which heavy engines are installed where the tests run: what lacks its engine is skipped, and says why."""

from importlib.util import find_spec

import pytest


def needs(*modules: str) -> list[pytest.MarkDecorator]:
    """Marks for what needs these modules of `./.venv-engines`."""
    missing = [module for module in modules if find_spec(module) is None]
    reason = f"{', '.join(missing)} not installed here: make test-engines"
    return [pytest.mark.engines, pytest.mark.skipif(bool(missing), reason=reason)]
