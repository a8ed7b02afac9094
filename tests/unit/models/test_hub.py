"""Fetching from a hub over real HTTP: the hub is ours, the client library is the real one."""

import hashlib
import json
from pathlib import Path

import huggingface_hub
import pytest

from tests import tiny_model
from tests.hub import COMMIT, Hub
from tokenfleet.runtime.errors import FleetError
from tokenfleet.runtime.models import ModelCache
from tokenfleet.v1 import common_pb2

WEIGHTS = tiny_model.safetensors(bytes(range(256)) * 64)
GGUF = tiny_model.gguf(b"weights")
TOKENIZER = json.dumps({"added_tokens": [{"id": 0, "content": "</s>"}], "model": {}}).encode()
FILES = {
    "README.md": b"# A model",
    "config.json": b'{"max_position_embeddings": 512}',
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": bytes(5000),
    "tokenizer.json": TOKENIZER,
    "tokenizer_config.json": b'{"eos_token": "</s>"}',
}


@pytest.fixture
def hub(asked_hub: Hub) -> Hub:
    asked_hub.files = dict(FILES)
    return asked_hub


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "cache")


def spec_of(source: str = "hf://org/model", digest: str = "") -> common_pb2.ModelSpec:
    return common_pb2.ModelSpec(name="m", source=source, digest=digest)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def failure_of(cache: ModelCache, spec: common_pb2.ModelSpec) -> str:
    with pytest.raises(FleetError) as caught:
        cache.weights(spec)
    assert caught.value.reason == common_pb2.REASON_LOAD_FAILED
    return caught.value.message


def test_an_engine_gets_a_folder_with_what_it_needs_and_no_more(hub: Hub, cache: ModelCache) -> None:
    seen: list[tuple[int, int]] = []
    spec = spec_of(digest=hashlib.sha256(WEIGHTS).hexdigest())
    folder = cache.weights(spec, lambda stage, done, total: seen.append((done, total)))
    assert names(folder) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    total = sum(len(FILES[name]) for name in names(folder))
    assert seen[-1] == (total, total)
    asked = len(hub.requests)
    assert cache.weights(spec) == folder
    assert len(hub.requests) == asked, "what is there is not asked for again"


def test_a_tokenizer_fetches_its_own_files_only(hub: Hub, cache: ModelCache) -> None:
    bundle = cache.tokenizer(spec_of())
    assert bundle.tokenizer_json.read_bytes() == TOKENIZER
    assert (bundle.eos_token, bundle.context_length) == ("</s>", 512)
    fetched = {path.rpartition("/")[2] for _, path, _ in hub.requests if "/resolve/" in path}
    assert fetched == {"tokenizer.json", "tokenizer_config.json", "config.json"}


def test_a_revision_stays_the_commit_that_it_was_first_resolved_to(hub: Hub, cache: ModelCache) -> None:
    folder = cache.weights(spec_of())
    assert COMMIT in folder.parts
    hub.commits["main"] = "f" * 40
    hub.commits["f" * 40] = "f" * 40
    cache.tokenizer(spec_of())
    asked = [path for _, path, _ in hub.requests if path.startswith("/api/")]
    assert asked[-1].endswith(COMMIT), "weights and tokenizer are of one commit"
    assert cache.weights(spec_of("hf://org/model@" + "f" * 40)) != folder


def test_one_gguf_is_a_file_and_its_tokenizer_is_inside(hub: Hub, cache: ModelCache) -> None:
    hub.files = {"README.md": b"x", "model-q4.gguf": GGUF}
    path = cache.weights(spec_of(digest=hashlib.sha256(GGUF).hexdigest()))
    assert path.name == "model-q4.gguf"
    assert path.read_bytes() == GGUF
    assert cache.tokenizer(spec_of()).context_length == 512
    hub.files["model-q8.gguf"] = GGUF
    other = ModelCache(path.parents[6] / "other")
    assert "name one, such as hf://org/model/model-q4.gguf" in failure_of(other, spec_of())
    assert other.weights(spec_of("hf://org/model/*q8*")).name == "model-q8.gguf"
    assert "matches 2 gguf files" in failure_of(other, spec_of("hf://org/model/*.gguf"))
    assert "model-q4.gguf" in failure_of(other, spec_of("hf://org/model/q5.gguf")), "it shows what there is"


def test_parts_of_one_gguf_come_together_and_the_first_is_named(hub: Hub, cache: ModelCache) -> None:
    hub.files = {f"big-0000{part}-of-00002.gguf": GGUF for part in (1, 2)}
    path = cache.weights(spec_of("hf://org/model/big-*.gguf"))
    assert path.name == "big-00001-of-00002.gguf"
    assert len(names(path.parent)) == 2


def test_a_folder_of_a_repository_may_be_named(hub: Hub, cache: ModelCache) -> None:
    hub.files = {f"fp16/{name}": content for name, content in FILES.items()}
    folder = cache.weights(spec_of("hf://org/model/fp16/*", digest=hashlib.sha256(WEIGHTS).hexdigest()))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert cache.tokenizer(spec_of("hf://org/model/fp16/*")).eos_token == "</s>"


def test_a_download_goes_on_where_the_connection_broke(hub: Hub, cache: ModelCache) -> None:
    hub.breaks_after = [4096, 4096]
    hub.files = {"model.safetensors": WEIGHTS}
    folder = cache.weights(spec_of())
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.ranges() == ["", "bytes=4096-", "bytes=8192-"]


def test_a_download_goes_on_in_another_attempt(hub: Hub, cache: ModelCache) -> None:
    hub.files = {"model.safetensors": WEIGHTS}
    hub.breaks_after = [4096, *[0] * 5]
    message = failure_of(cache, spec_of())
    assert hub.url in message
    assert "HF_ENDPOINT" in message
    hub.requests.clear()
    folder = cache.weights(spec_of())
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.ranges() == ["bytes=4096-"]


def test_a_progress_that_raises_ends_the_download(hub: Hub, cache: ModelCache) -> None:
    def stop(stage: int, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.weights(spec_of(), stop)
    assert (cache.weights(spec_of()) / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_arrives_spoilt_is_refused_and_fetched_again(
    hub: Hub, cache: ModelCache, name: str
) -> None:
    hub.spoilt = {name}
    message = failure_of(cache, spec_of())
    assert name in message
    assert "expected" in message
    hub.spoilt = set()
    assert (cache.weights(spec_of()) / name).read_bytes() == FILES[name]


def test_a_file_damaged_in_the_cache_is_the_only_one_fetched_again(hub: Hub, cache: ModelCache) -> None:
    folder = cache.weights(spec_of())
    (folder / "model.safetensors").write_bytes(WEIGHTS[:100])
    hub.requests.clear()
    assert cache.weights(spec_of()) == folder
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert len(hub.ranges()) == 1


def test_no_such_repository(hub: Hub, cache: ModelCache) -> None:
    message = failure_of(cache, spec_of("hf://org/other"))
    assert "hf://org/other" in message
    assert "HF_TOKEN_PATH" in message


def test_no_such_revision(hub: Hub, cache: ModelCache) -> None:
    assert "has no revision 'v9'" in failure_of(cache, spec_of("hf://org/model@v9"))


def test_a_gated_repository_wants_a_token_which_may_be_in_a_file(
    hub: Hub, cache: ModelCache, tmp_path: Path
) -> None:
    hub.gated, hub.token = True, "hf_secret"
    message = failure_of(cache, spec_of())
    assert f"accept its terms at {hub.url}/org/model" in message
    (tmp_path / "token").write_text("hf_wrong\n")
    assert "gated" in failure_of(cache, spec_of())
    (tmp_path / "token").write_text("hf_secret\n")
    assert cache.weights(spec_of()).is_dir()


def test_a_token_that_is_no_good_is_said_to_be(hub: Hub, cache: ModelCache, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    (tmp_path / "token").write_text("hf_wrong\n")
    message = failure_of(cache, spec_of())
    assert "answers 401" in message
    assert "HF_TOKEN_PATH is not a good one" in message
    assert "hf_wrong" not in message


def test_offline_means_what_is_there(
    hub: Hub, cache: ModelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cache.weights(spec_of())
    with monkeypatch.context() as offline:
        offline.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        huggingface_hub.close_session()
        assert cache.weights(spec_of()) == folder
        assert "HF_HUB_OFFLINE" in failure_of(ModelCache(tmp_path / "empty"), spec_of())
    huggingface_hub.close_session()


def test_a_hub_that_nobody_answers_is_named(cache: ModelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    message = failure_of(cache, spec_of())
    assert "http://127.0.0.1:9" in message
    assert "HF_ENDPOINT" in message
