"""How pressing a request is, as HTTP and WebSocket clients say it, and what of it reaches the router."""

import json
from pathlib import Path

import pytest

from tests.contract.fake_fleet import FakeFleet, gateway_on_fakes
from tests.contract.keys import bearer, made_key, write_keys
from tests.contract.test_gateway_http import CHAT, COMPLETIONS, chat
from tests.contract.test_gateway_websocket import hear_out, open_socket, send
from tokenfleet.v1 import common_pb2 as pb


def told(fleet: FakeFleet) -> tuple[int, float, float]:
    ask = fleet.router.asks[-1]
    return ask.context.priority, ask.ttft_objective_s, ask.itl_objective_s


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_headers_say_the_class_and_the_objectives(path: str) -> None:
    body = chat() if path == CHAT else {"model": "letters", "prompt": "abc", "max_tokens": 5}
    async with gateway_on_fakes() as fleet:
        await fleet.http.post(path, json=body)
        assert told(fleet) == (pb.PRIORITY_STANDARD, 0.0, 0.0)
        assert not fleet.router.asks[-1].HasField("ttft_objective_s")
        headers = {"X-Request-Priority": "Interactive", "X-TTFT-Objective": "0.5", "X-ITL-Objective": "0.25"}
        assert (await fleet.http.post(path, json=body, headers=headers)).status_code == 200
        assert told(fleet) == (pb.PRIORITY_INTERACTIVE, 0.5, 0.25)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Request-Priority", "urgent"),
        ("X-Request-Priority", ""),
        ("X-TTFT-Objective", "soon"),
        ("X-TTFT-Objective", "0"),
        ("X-TTFT-Objective", "-1"),
        ("X-ITL-Objective", "nan"),
        ("X-ITL-Objective", "inf"),
    ],
)
async def test_a_bad_header_is_named(name: str, value: str) -> None:
    async with gateway_on_fakes() as fleet:
        response = await fleet.http.post(CHAT, json=chat(), headers={name: value})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == name
        assert not fleet.router.asks


async def test_a_key_bounds_the_class(tmp_path: Path) -> None:
    key, line = made_key("t")
    bounded = json.dumps(json.loads(line) | {"priority": "batch"})
    keys = write_keys(tmp_path / "keys", bounded)
    async with gateway_on_fakes(api_keys_file=keys) as fleet:
        headers = bearer(key) | {"X-Request-Priority": "interactive"}
        assert (await fleet.http.post(CHAT, json=chat(), headers=headers)).status_code == 200
        assert told(fleet)[0] == pb.PRIORITY_BATCH


async def test_a_message_on_a_socket_says_the_same() -> None:
    async with gateway_on_fakes() as fleet, open_socket(fleet) as client:
        await send(client, chat(priority="batch", ttft_objective=2, itl_objective=0.5))
        await hear_out(client)
        assert told(fleet) == (pb.PRIORITY_BATCH, 2.0, 0.5)
