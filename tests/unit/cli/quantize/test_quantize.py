"""What the command makes of a file, what it refuses, and that it leaves nothing half made."""

import itertools
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import yaml

from tests.unit.cli.quantize import tiny_gguf
from tokenfleet.cli.errors import CliError
from tokenfleet.cli.quantize import gguf_file, rounding
from tokenfleet.cli.quantize.check import agreement
from tokenfleet.cli.quantize.command import QuantizeOptions, list_methods, run_quantize
from tokenfleet.cli.quantize.methods import METHODS, find_method, group_size
from tokenfleet.model_loader.catalog import read_catalog
from tokenfleet.runtime.models.gguf_metadata import read_metadata


def options(source: object, output: Path, method: str = "q8_0", **changes: Any) -> QuantizeOptions:
    values: dict[str, Any] = {
        "catalog": None,
        "group_size": 0,
        "iterations": 0,
        "check": False,
        "force": False,
        **changes,
    }
    return QuantizeOptions(source=str(source), output=output, method=method, **values)


def types(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def weights(path: Path, name: str) -> Any:
    tensor = next(one for one in gguf.GGUFReader(path).tensors if one.name == name)
    return gguf.dequantize(tensor.data, tensor.tensor_type)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tiny_gguf.write(tmp_path / "model.gguf", (256, 576))


@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if one.makes == "gguf"])
def test_weights_stay_what_they_were_but_for_rounding(source: Path, tmp_path: Path, method: str) -> None:
    run_quantize(options(source, tmp_path / "small.gguf", method))
    for name in ("token_embd.weight", "blk.0.ffn_down.weight", "blk.1.ffn_down.weight"):
        before, after = weights(source, name), weights(tmp_path / "small.gguf", name)
        error = np.sqrt(np.mean((before - after) ** 2))
        assert 0 < error < (0.01 if method == "q8_0" else 0.15)
    norm = "output_norm.weight"
    assert np.array_equal(weights(source, norm), weights(tmp_path / "small.gguf", norm))
    assert (tmp_path / "small.gguf").stat().st_size < source.stat().st_size


def test_the_header_stays_but_for_the_name_of_the_type(source: Path, tmp_path: Path) -> None:
    run_quantize(options(source, tmp_path / "small.gguf", "q4_0"))
    before, after = read_metadata(source), read_metadata(tmp_path / "small.gguf")
    assert {key: value for key, value in after.items() if not key.startswith("general.")} == {
        key: value for key, value in before.items() if not key.startswith("general.")
    }
    assert after["general.file_type"] == 2


def test_k_quants_go_where_rows_divide_and_output_layers_get_more_bits(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_quantize(options(source, tmp_path / "small.gguf", "q4_k"))
    assert types(tmp_path / "small.gguf") == {
        "token_embd.weight": "Q6_K",
        "output_norm.weight": "F32",
        "blk.0.ffn_down.weight": "Q4_K",
        "blk.1.ffn_down.weight": "Q5_0",
    }
    assert "1 of them are Q5_0" in capsys.readouterr().out


def test_without_llama_cpps_library_the_simple_types_can_be_made_all_the_same(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_quantize(options(source, tmp_path / "native.gguf"))
    monkeypatch.setattr(gguf_file, "_llama_library", lambda: None)
    run_quantize(options(source, tmp_path / "python.gguf"))
    name = "blk.0.ffn_down.weight"
    one, other = weights(tmp_path / "native.gguf", name), weights(tmp_path / "python.gguf", name)
    assert np.abs(one - other).max() < 0.05  # ties may be rounded the other way
    with pytest.raises(CliError, match=r"Q6_K needs llama.cpp's own code"):
        run_quantize(options(source, tmp_path / "k.gguf", "q6_k"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.gguf", "native.gguf", "python.gguf"]


def test_the_entry_that_is_printed_is_one_that_the_catalog_takes(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_quantize(options(source, tmp_path / "small.gguf"))
    printed = capsys.readouterr().out.partition("For the catalog:")[2]
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(yaml.safe_dump({"models": yaml.safe_load(printed)}))
    (spec,) = read_catalog(catalog).specs()
    assert spec.name == "model-q8-0"
    assert spec.source == f"file://{tmp_path}/small.gguf"
    assert spec.context_length == 512
    assert spec.engines[0].engine == "llamacpp"


def test_an_output_that_exists_is_replaced_only_when_told_so(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.gguf"
    target.write_text("precious")
    with pytest.raises(CliError, match="--force"):
        run_quantize(options(source, target))
    assert target.read_text() == "precious"
    run_quantize(options(source, target, force=True))
    assert types(target)["token_embd.weight"] == "Q8_0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "q4_m"}, r"there is no method 'q4_m'; there are q8_0, .*Did you mean q4_"),
        (
            {"source": "nothing-like-it"},
            r"no file, folder or model 'nothing-like-it'; the catalog has .*smollm2",
        ),
        ({"output": Path("plain")}, r"let .*plain end in .gguf"),
        ({"method": "w8a8"}, "w8a8 writes a folder"),
        ({"method": "gptq", "output": Path("folder"), "check": True}, "--check runs llama.cpp"),
        ({"output": Path("nowhere/small.gguf")}, "there is no folder .*nowhere"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(
    source: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    told = {"source": source, "output": Path("small.gguf"), **change}
    told["output"] = tmp_path / told["output"]
    with pytest.raises(CliError, match=message):
        run_quantize(options(**told))
    assert list(tmp_path.iterdir()) == [source]


def test_files_that_are_no_model_are_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("no gguf at all, but long enough to be read as one perhaps")
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("text.gguf", "no readable gguf"),
        ("notes.txt", "neither a .gguf nor a folder"),
        ("empty", "no config.json"),
    ):
        with pytest.raises(CliError, match=message):
            run_quantize(options(tmp_path / name, tmp_path / "small.gguf"))
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(CliError, match="is a folder: name its gguf"):
        run_quantize(options(tmp_path / "empty", tmp_path / "small.gguf"))


def test_rows_that_do_not_divide_are_refused_by_their_widths(tmp_path: Path) -> None:
    narrow = tiny_gguf.write(tmp_path / "narrow.gguf", (96, 64))
    with pytest.raises(CliError, match=r"divides by that: they have 64, 96. What fits: q8_0, q5_0 or q4_0"):
        run_quantize(options(narrow, tmp_path / "small.gguf", "q5_k"))
    run_quantize(options(narrow, tmp_path / "small.gguf", "q5_0"))
    again = tiny_gguf.write(tmp_path / "q8.gguf", (64,), gguf.GGMLQuantizationType.Q8_0)
    with pytest.raises(CliError, match="is q8_0 already"):
        run_quantize(options(again, tmp_path / "same.gguf"))


def test_a_scale_is_shared_by_as_many_weights_as_divide_all_rows() -> None:
    w4a16 = find_method("w4a16")
    assert group_size(w4a16, 0, {4096, 14336}) == 128
    assert group_size(w4a16, 0, {576, 1536}) == 64
    assert group_size(w4a16, 32, {576, 1536}) == 32
    assert group_size(find_method("w8a8"), 0, {577}) == 0
    with pytest.raises(CliError, match="between 128 weights, but this model's rows have 576, 1536"):
        group_size(w4a16, 128, {576, 1536})


def test_a_folder_needs_what_is_not_installed_here_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"hidden_size": 64, "intermediate_size": 128}')
    monkeypatch.setattr(rounding, "_NEEDED", ("json", "no_such_library"))
    with pytest.raises(CliError, match="w4a16 needs no_such_library"):
        run_quantize(options(tmp_path / "model", tmp_path / "small", "w4a16"))
    assert not (tmp_path / "small").exists()


def test_agreement_is_of_the_common_beginning() -> None:
    found = agreement(["same text", "abcd", ""], ["same text", "abXd", ""])
    assert found.share == pytest.approx((1 + 0.5 + 1) / 3)
    assert (found.whole, found.of) == (2, 3)


def test_all_methods_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    list_methods()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(METHODS)
    for one, other in itertools.combinations(lines, 2):
        assert one != other
