"""Folders that AutoRound makes of a tiny model: that they are whole, smaller, and say what they are."""

import json
from pathlib import Path

import pytest

from tests.engines.installed import needs
from tokenfleet.cli.quantize.command import QuantizeOptions, run_quantize

pytestmark = needs("torch", "transformers", "auto_round")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("tiny")
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    words = {f"w{number}": number for number in range(63)} | {"?": 63}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="?")), unk_token="?"
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("method", "known_as"), [("w8a8", "compressed-tensors"), ("gptq", "gptq")])
def test_a_folder_is_whole_and_says_how_it_was_quantized(
    source: Path, tmp_path: Path, method: str, known_as: str
) -> None:
    target = tmp_path / method
    run_quantize(
        QuantizeOptions(
            str(source), target, method, catalog=None, group_size=0, iterations=0, check=False, force=False
        )
    )
    config = json.loads((target / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == known_as
    assert (target / "tokenizer.json").is_file()
    assert list(target.glob("*.safetensors"))
    assert [file.name for file in tmp_path.iterdir()] == [method]
