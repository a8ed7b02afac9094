"""`tokenfleet models load` and its like: what they order, what they say, and their exit codes."""

import io
import json
from typing import Any

import pytest
from rich.console import Console

from tests.unit.cli.test_gateway_http import scripted
from tokenfleet.cli import models_admin as admin
from tokenfleet.cli.errors import CliError
from tokenfleet.cli.gateway_http import GatewayError, Loading
from tokenfleet.cli.load_bar import LoadBar, described
from tokenfleet.cli.models import show_models

STEP = {
    "model": "m",
    "stage": "fetching",
    "bytes_done": 40,
    "bytes_total": 100,
    "eta_s": 2.0,
    "worker_id": "w",
}
WORKERS = [{"worker_id": "w-1a", "worker": "w"}, {"worker_id": "v-2b", "worker": "v"}]


def stream(*events: Any, done: bool = True) -> bytes:
    frames = [f"data: {json.dumps(event)}\n\n" for event in events] + ["data: [DONE]\n\n"] * done
    return "".join(frames).encode()


def test_a_load_is_followed_to_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    with scripted(200, stream(STEP, STEP | {"stage": "ready"})) as server:
        assert admin.load(admin.Target(url=server.address, api_key="k"), "m", 2) == 0
    path, headers, body = server.asked[0]
    assert (path, headers["Authorization"]) == ("/admin/models/load", "Bearer k")
    assert json.loads(body) == {"model": "m", "replicas": 2, "stream": True}
    said = capsys.readouterr()
    assert said.out == "m is loaded\n"
    assert "m: fetching 0.0 of 0.0 MB, 2 s left" in said.err


def test_a_load_that_fails_or_breaks_off_is_an_error() -> None:
    error = {"error": {"message": "weights are truncated", "code": "load_failed"}}
    with (
        scripted(200, stream(STEP, error, done=False)) as server,
        pytest.raises(GatewayError, match="truncated"),
    ):
        admin.load(admin.Target(url=server.address), "m", 1)
    with (
        scripted(200, stream(STEP, done=False)) as server,
        pytest.raises(GatewayError, match="the load goes on"),
    ):
        admin.load(admin.Target(url=server.address), "m", 1)


@pytest.mark.parametrize(("done", "code"), [(True, 0), (False, 1)])
def test_an_unload_that_a_worker_refuses_fails_and_says_how_to_insist(
    capsys: pytest.CaptureFixture[str], done: bool, code: int
) -> None:
    failure = None if done else {"reason": "busy", "message": "2 sequences run"}
    result = {"worker_id": "w-1a", "done": done, "freed_bytes": 5_000_000, "failure": failure}
    with scripted(200, json.dumps({"model": "m", "workers": [result]}).encode()) as server:
        assert admin.unload(admin.Target(url=server.address), "m", "", force=False) == code
    assert ("5 MB are free" if done else "--force") in capsys.readouterr().out


def test_a_worker_is_named_as_people_name_it() -> None:
    with scripted(200, json.dumps({"workers": WORKERS, "models": []}).encode()) as server:
        target = admin.Target(url=server.address)
        with pytest.raises(CliError, match="there are: v, w"):
            admin.unload(target, "m", "x", force=False)
        assert admin._worker_id(target, "m", "w") == admin._worker_id(target, "m", "w-1a") == "w-1a"


def test_an_entry_is_made_of_what_was_said() -> None:
    given = {"context_length": 4096, "weights_bytes": "94MiB", "kv_bytes": "", "digest": "", "policy": "warm"}
    entry = admin.entry_of("m", "file:///m", ["llamacpp", "sim"], given, ["n_parallel=4", "cache_type=q8_0"])
    arguments = {"n_parallel": 4, "cache_type": "q8_0"}
    assert entry == {
        "name": "m",
        "source": "file:///m",
        "context_length": 4096,
        "policy": "warm",
        "engines": [
            {"engine": engine, "weights_bytes": "94MiB", "arguments": arguments}
            for engine in ("llamacpp", "sim")
        ],
    }
    with pytest.raises(CliError, match="NAME=VALUE"):
        admin.entry_of("m", "file:///m", ["sim"], given, ["n_parallel"])


def test_a_refusal_says_which_key_it_takes() -> None:
    error = {"error": {"message": "no admin key", "code": "permission_denied"}}
    with scripted(403, json.dumps(error).encode()) as server, pytest.raises(GatewayError, match="--api-key"):
        admin.pin(admin.Target(url=server.address), "m", pinned=True)


def test_a_list_from_elsewhere_has_places_for_those_who_manage(capsys: pytest.CaptureFixture[str]) -> None:
    model = {
        "name": "m",
        "policy": "lazy",
        "context_length": 512,
        "places": [{"worker": "w", "worker_id": "w-1a", "state": "ready", "memory_bytes": 1}],
        "pinned": True,
        "wants_memory_bytes": 0,
        "loading": None,
        "quarantine": None,
    }
    with scripted(200, json.dumps({"models": [model], "workers": []}).encode()) as server:
        show_models(port=None, url=server.address, loader="", api_key="", as_json=False)
    said = capsys.readouterr().out
    assert "pinned" in said
    assert " w " in said


def test_bars_on_a_terminal_and_lines_into_a_pipe() -> None:
    loading = Loading("m", "fetching", 40_000_000, 94_000_000, 12.0)
    assert described(loading) == "m: fetching 40 of 94 MB, 12 s left"
    pipe, terminal = io.StringIO(), io.StringIO()
    for file, is_terminal in ((pipe, False), (terminal, True)):
        bar = LoadBar(Console(file=file, force_terminal=is_terminal, width=100))
        for _ in range(3):
            bar.show(loading)
        bar.end()
    assert pipe.getvalue() == "m: fetching 40 of 94 MB, 12 s left\n", "once a stage"
    assert "40 of 94 MB" in terminal.getvalue()
