"""A gguf as a folder that Hugging Face's libraries read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import real_model
from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.models import gguf_folder
from tokenfleet.runtime.models.gguf_folder import bfloat16, config_of, tensor_name, unpermuted


def widened(bits: Any) -> Any:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def test_weights_are_rounded_to_the_nearest_bfloat16_and_ties_to_even() -> None:
    exact = np.array([0.0, -1.5, 3.0e38, 1.0], dtype=np.float32)
    assert widened(bfloat16(exact)).tolist()[:2] == [0.0, -1.5]
    step = 2.0**-7  # between neighbours above 1
    given = np.array([1 + step / 4, 1 + step * 3 / 4, 1 + step / 2, 1 + step * 3 / 2], dtype=np.float32)
    assert widened(bfloat16(given)).tolist() == [1, 1 + step, 1, 1 + 2 * step]


def test_the_rotation_s_halves_are_put_back_one_behind_the_other() -> None:
    published = np.arange(2 * 4 * 3).reshape(8, 3)  # two heads of four rows
    as_llama_cpp_has_it = published.reshape(2, 2, 2, 3).swapaxes(1, 2).reshape(8, 3)
    assert (as_llama_cpp_has_it != published).any()
    assert (unpermuted(as_llama_cpp_has_it, 2) == published).all()


def test_tensors_have_their_published_names() -> None:
    assert tensor_name("blk.7.ffn_down.weight") == "model.layers.7.mlp.down_proj.weight"
    assert tensor_name("token_embd.weight") == "model.embed_tokens.weight"
    with pytest.raises(FleetError, match="rope_freqs"):
        tensor_name("rope_freqs.weight")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"general.architecture": "mamba"}, "architecture 'mamba'"),
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"llama.rope.scaling.type": "yarn"}, "rope scaling 'yarn'"),
    ],
)
def test_what_would_come_out_wrong_is_refused_with_a_remedy(changed: dict[str, Any], words: str) -> None:
    cache, spec = real_model.cache(), real_model.spec()
    metadata = {"general.architecture": "llama", **changed}
    with pytest.raises(FleetError, match=words) as caught:
        config_of(metadata, cache.tokenizer(spec))
    assert "llamacpp" in caught.value.message


def test_a_file_that_is_none_fails_with_its_own_words(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"no gguf at all")
    with pytest.raises(FleetError, match="does not begin with GGUF"):
        gguf_folder.convert(broken, real_model.cache().tokenizer(real_model.spec()), tmp_path)
