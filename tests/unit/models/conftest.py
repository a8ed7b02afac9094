"""Where the tests of this folder get models from: a hub and a package index of their own."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import huggingface_hub.file_download
import pytest

from tests.hub import Hub, serving
from tests.unit.models.index import Index


@pytest.fixture
def asked_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that this process asks, which has read the environment long ago, and processes that it starts."""
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    monkeypatch.setattr(huggingface_hub.file_download, "time", SimpleNamespace(sleep=lambda seconds: None))
    with serving(Hub({})) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub
        huggingface_hub.close_session()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    index = Index(tmp_path / "index")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index.folder))
    return index
