"""The small model's gguf as a folder. Its weights are judged by the answers of the engines that read it."""

import json
import struct

from tests import real_model
from tests.engines.installed import needs
from tokenfleet.runtime.models.gguf_folder import WEIGHTS_FILE

pytestmark = needs("gguf")


def test_the_small_model_s_folder_is_whole() -> None:
    folder = real_model.cache().folder(real_model.spec())
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"], config["tie_word_embeddings"]) == (
        "llama",
        30,
        True,
    )
    generation = json.loads((folder / "generation_config.json").read_text())
    assert 2 in generation["eos_token_id"]
    with (folder / WEIGHTS_FILE).open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    assert len(header) - 1 == 272
    assert header["model.layers.0.self_attn.k_proj.weight"]["shape"] == [192, 576]
    end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    assert (folder / WEIGHTS_FILE).stat().st_size == 8 + length + end
