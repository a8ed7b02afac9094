"""The fleet's models in operators' hands: who may, what it does, and what it says when it cannot."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contract.fake_fleet import FakeFleet, gateway_on_fakes
from tests.contract.keys import bearer, made_key, write_keys
from tokenfleet.runtime.errors import FleetError
from tokenfleet.v1 import common_pb2 as pb
from tokenfleet.v1 import model_loader_pb2 as api

MODELS = "/admin/models"
LOAD = "/admin/models/load"
ORDERS: dict[str, dict[str, Any]] = {
    MODELS: {"entry": {"name": "added"}},
    LOAD: {"model": "letters"},
    "/admin/models/unload": {"model": "letters"},
    "/admin/models/pin": {"model": "letters"},
    "/admin/models/remove": {"model": "letters"},
}


async def orders(fleet: FakeFleet, **options: Any) -> list[httpx.Response]:
    """One of each, the list first."""
    answers = [await fleet.http.get(MODELS, **options)]
    return answers + [await fleet.http.post(path, json=body, **options) for path, body in ORDERS.items()]


async def test_only_an_admin_key_opens_it(tmp_path: Path) -> None:
    (ordinary, its_line), (admin, admins_line) = made_key("acme"), made_key("ops", admin=True)
    file = write_keys(tmp_path / "keys", its_line, admins_line)
    async with gateway_on_fakes(api_keys_file=file) as fleet:
        for headers, status, code in (
            ({}, 401, "invalid_api_key"),
            (bearer(ordinary), 403, "permission_denied"),
            (bearer(admin), 200, ""),
        ):
            for response in await orders(fleet, headers=headers):
                assert response.status_code == status, response.text
                assert not code or response.json()["error"]["code"] == code
        assert len(fleet.loader.ordered) == len(ORDERS)
        assert (await fleet.http.get("/v1/models", headers=bearer(admin))).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-For": "10.0.0.1"},
        {"Forwarded": "for=10.0.0.1"},
        {"Origin": "https://evil.example"},
        {"Host": "rebound.example"},
    ],
)
async def test_without_keys_only_this_machine_may(headers: dict[str, str]) -> None:
    async with gateway_on_fakes() as fleet:
        assert all(response.status_code == 200 for response in await orders(fleet))
        fleet.loader.ordered.clear()
        for response in await orders(fleet, headers=headers):
            assert response.status_code == 403
            assert response.json()["error"]["code"] == "permission_denied"
        assert not fleet.loader.ordered
        local = {"Origin": "http://localhost:5173"}
        assert (await fleet.http.get(MODELS, headers=local)).status_code == 200


async def test_it_shows_what_is_where() -> None:
    async with gateway_on_fakes() as fleet:
        told = (await fleet.http.get(MODELS)).json()
        (model,), (worker,) = told["models"], told["workers"]
        assert (model["name"], model["places"][0]["state"], model["quarantine"]) == ("letters", "ready", None)
        assert (worker["engines"], worker["budget_bytes"]) == (["sim"], 100)


async def test_orders_reach_the_loader_as_they_were_given() -> None:
    async with gateway_on_fakes() as fleet:
        await fleet.http.post(LOAD, json={"model": "letters", "replicas": 3})
        unload = {"model": "letters", "worker_id": "w", "force": True}
        unloaded = (await fleet.http.post("/admin/models/unload", json=unload)).json()
        await fleet.http.post("/admin/models/pin", json={"model": "letters", "pinned": False})
        added = (await fleet.http.post(MODELS, json={"entry": "name: added", "replace": True})).json()
        await fleet.http.post(MODELS, json={"entry": {"name": "added"}})
        await fleet.http.post("/admin/models/remove", json={"model": "letters"})
        assert fleet.loader.ordered == [
            api.EnsureLoadedRequest(model="letters", replicas=3),
            api.UnloadRequest(model="letters", worker_id="w", force=True),
            api.PinRequest(model="letters"),
            api.AddModelRequest(entry="name: added", replace=True),
            api.AddModelRequest(entry='{"name": "added"}'),
            api.RemoveModelRequest(model="letters"),
        ]
        assert unloaded["workers"][0] | {"worker_id": ""} == {
            "worker_id": "",
            "done": True,
            "freed_bytes": 7,
            "failure": None,
        }
        assert added == {"model": "letters", "source": ""}


async def test_each_worker_says_for_itself_why_it_did_not_unload() -> None:
    async with gateway_on_fakes() as fleet:
        done, busy = (await fleet.http.post("/admin/models/unload", json={"model": "letters"})).json()[
            "workers"
        ]
        assert (done["done"], busy["done"], busy["failure"]["reason"]) == (True, False, "busy")


def step(stage: Any, done: int = 0) -> api.EnsureLoadedResponse:
    progress = pb.LoadProgress(model="letters", stage=stage, bytes_done=done, bytes_total=10, worker_id="w")
    return api.EnsureLoadedResponse(progress=progress)


async def test_a_load_can_be_watched() -> None:
    async with gateway_on_fakes() as fleet:
        fetching = pb.LoadProgress.STAGE_FETCHING
        fleet.loader.progress = [step(fetching, 1), step(fetching, 9)]
        events = (await fleet.http.post(LOAD, json={"model": "letters", "stream": True})).text.split("\n\n")
        steps = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
        assert [(each["stage"], each["bytes_done"]) for each in steps] == [
            ("fetching", 1),
            ("fetching", 9),
            ("ready", 0),
        ]
        assert events[-2:] == ["data: [DONE]", ""]
        assert (await fleet.http.post(LOAD, json={"model": "letters"})).json()["stage"] == "ready"


async def test_a_load_that_fails_says_why_and_when_to_come_back() -> None:
    async with gateway_on_fakes() as fleet:
        failure = pb.Failure(reason=pb.REASON_OUT_OF_MEMORY, message="add a worker", retry_after_ms=5000)
        failed = pb.LoadProgress(model="letters", stage=pb.LoadProgress.STAGE_FAILED, failure=failure)
        fleet.loader.progress = [api.EnsureLoadedResponse(progress=failed)]
        whole = await fleet.http.post(LOAD, json={"model": "letters"})
        assert (whole.status_code, whole.headers["retry-after"]) == (503, "5")
        streamed = await fleet.http.post(LOAD, json={"model": "letters", "stream": True})
        assert '"code":"out_of_memory"' in streamed.text
        assert "[DONE]" not in streamed.text


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (FleetError(pb.REASON_INVALID_ARGUMENT, "nmae: unknown key", field="entry"), 400, "invalid_value"),
        (FleetError(pb.REASON_MODEL_NOT_FOUND, "no such", field="model"), 404, "model_not_found"),
    ],
)
async def test_what_the_loader_refuses_is_told_as_it_is(error: FleetError, status: int, code: str) -> None:
    async with gateway_on_fakes() as fleet:
        fleet.loader.failure = error
        for path in (MODELS, "/admin/models/remove"):
            response = await fleet.http.post(path, json=ORDERS[path])
            assert response.status_code == status
            told = response.json()["error"]
            assert (told["code"], told["message"], told["param"]) == (code, error.message, error.field)


async def test_a_model_that_is_nowhere_cannot_be_unloaded() -> None:
    async with gateway_on_fakes() as fleet:
        fleet.loader.failure = FleetError(
            pb.REASON_NOT_RESIDENT, "letters is not on any worker", field="model"
        )
        response = await fleet.http.post("/admin/models/unload", json={"model": "letters"})
        assert (response.status_code, response.json()["error"]["code"]) == (404, "not_resident")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (LOAD, {}),
        (LOAD, {"model": "letters", "replicas": 0}),
        (LOAD, {"model": "letters", "replcias": 1}),
        (MODELS, {"entry": 1}),
        ("/admin/models/pin", {"model": "letters", "pinned": "yes"}),
    ],
)
async def test_a_bad_order_is_named_and_goes_nowhere(path: str, body: dict[str, Any]) -> None:
    async with gateway_on_fakes() as fleet:
        response = await fleet.http.post(path, json=body)
        assert response.status_code == 400
        assert not fleet.loader.ordered


async def test_a_model_that_does_not_exist_is_said_to_be_none() -> None:
    async with gateway_on_fakes() as fleet:
        for path, order in ORDERS.items():
            if "model" in order:
                response = await fleet.http.post(path, json=order | {"model": "nothing"})
                assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
        assert not fleet.loader.ordered
