"""A whole fleet with mutual TLS, TLS at the edge and keys: renewed under load, and closed to others."""

import asyncio
import json
import ssl
import sys
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.certificates import DOMAIN, ROLES, Authority
from tests.contract.keys import bearer, made_key, write_keys
from tests.e2e.catalogs import simulated, write_catalog
from tests.e2e.streams import chat_body
from tokenfleet.cli.local_fleet import FleetSecurity, FleetSpec, LocalFleet
from tokenfleet.client import AsyncFleetClient, Tls

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(170)]

POLL = ("--reload-poll-s", "0.1")
TOKENS = 40
LOADED = 8  # requests at once


class Secured:
    """A fleet's files and addresses, and a client that trusts its authority."""

    def __init__(self, path: Path) -> None:
        self.ours, self.edge = Authority(), Authority()
        self.peers = self.ours.write_peers(path / "peers")
        self.cert, self.cert_key = self.edge.write(path, "edge", "127.0.0.1")
        self.key, self.line = made_key("acme")
        self.keys = write_keys(path / "keys", self.line)
        engine = simulated(profile="fixed", ttft_ms=5, itl_ms=10, max_sequences=64, mean_output_tokens=0)
        self.spec = FleetSpec(
            state_dir=path / "state",
            workers=2,
            tokenizers=1,
            engines=("sim",),
            catalog=write_catalog(path / "catalog.yaml", engine),
            grace_s=3,
            flags=dict.fromkeys(ROLES, POLL),
            security=FleetSecurity(
                api_keys=self.keys, edge_cert=self.cert, edge_key=self.cert_key, peers=self.peers
            ),
        )

    def client(self, fleet: LocalFleet) -> httpx.AsyncClient:
        context = ssl.create_default_context(cadata=self.edge.pem.decode())
        return httpx.AsyncClient(base_url=fleet.http_url, verify=context, timeout=30)

    async def answered(self, http: httpx.AsyncClient, key: str, prompt: str = "hello") -> int:
        """One streamed answer, which has to be whole: its status, or its tokens' count where that is 200."""
        body = chat_body("sim", prompt, TOKENS) | {"stream": True}
        async with http.stream("POST", "/v1/chat/completions", json=body, headers=bearer(key)) as response:
            lines = [line async for line in response.aiter_lines() if line.startswith("data: ")]
            if response.status_code != 200:
                return response.status_code
        assert lines[-1] == "data: [DONE]", lines[-1]
        usage: dict[str, Any] = json.loads(lines[-2].removeprefix("data: "))["usage"]
        return int(usage["completion_tokens"])

    async def until_served(self, fleet: LocalFleet) -> None:
        async with asyncio.timeout(60), self.client(fleet) as http:
            while await self.answered(http, self.key) != TOKENS:
                await asyncio.sleep(0.1)


def logged(fleet: LocalFleet, name: str, event: str) -> list[dict[str, Any]]:
    lines = fleet.log(name).read_text().splitlines()
    records = [json.loads(line) for line in lines if line.startswith("{")]
    return [record for record in records if record["event"] == event]


async def test_everything_is_renewed_under_load_and_nobody_notices(tmp_path: Path) -> None:
    secured = Secured(tmp_path)
    async with LocalFleet(secured.spec) as fleet:
        await secured.until_served(fleet)
        await _stock_clients_are_answered(secured, fleet)
        outcomes: list[int] = []
        key = secured.key
        done = asyncio.Event()

        async def load(number: int) -> None:
            while not done.is_set():
                async with secured.client(fleet) as http:  # a connection and a handshake each
                    outcomes.append(await secured.answered(http, key, f"{number}"))

        async with asyncio.TaskGroup() as group:
            for number in range(LOADED):
                group.create_task(load(number))

            async def more(requests: int) -> None:
                async with asyncio.timeout(60):
                    wanted = len(outcomes) + requests
                    while len(outcomes) < wanted:
                        await asyncio.sleep(0.02)

            await more(LOADED)
            for role in ROLES:
                secured.ours.write(secured.peers, role, f"{role}.{DOMAIN}")
            secured.edge.write(tmp_path, "edge", "127.0.0.1")
            new_key, new_line = made_key("acme")
            write_keys(secured.keys, secured.line, new_line)
            await _taken(fleet, 2)
            key = new_key
            await more(2 * LOADED)
            write_keys(secured.keys, new_line)
            async with asyncio.timeout(20), secured.client(fleet) as http:
                while await secured.answered(http, secured.key) != 401:
                    await asyncio.sleep(0.05)
            # new connections between peers, with what was renewed: a worker's next life
            fleet.kill("worker-0")
            await fleet.wait_ready("worker-0")
            await more(2 * LOADED)
            done.set()
        assert set(outcomes) == {TOKENS}, "every answer was whole"
        assert len(outcomes) >= 5 * LOADED


async def _taken(fleet: LocalFleet, certificates: int) -> None:
    """Until the gateway has read its two certificates again, and each other service its one."""
    names = [name for name in fleet.spec.process_names() if name != "store"]
    async with asyncio.timeout(30):
        while not all(
            len(logged(fleet, name, "certificate")) >= certificates * (2 if name == "gateway" else 1)
            for name in names
        ):
            await asyncio.sleep(0.05)


async def _stock_clients_are_answered(secured: Secured, fleet: LocalFleet) -> None:
    trusting = ssl.create_default_context(cadata=secured.edge.pem.decode())
    async with openai.DefaultAsyncHttpxClient(verify=trusting) as http:
        client = openai.AsyncOpenAI(base_url=f"{fleet.http_url}/v1", api_key=secured.key, http_client=http)
        stream = await client.chat.completions.create(
            model="sim", messages=[{"role": "user", "content": "hello"}], max_tokens=TOKENS, stream=True
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
        with pytest.raises(openai.AuthenticationError):
            await client.with_options(api_key="guess").models.list()
    tls = Tls(root_certificates=secured.edge.pem)
    async with AsyncFleetClient(fleet.addresses["gateway"], api_key=secured.key, tls=tls) as own:
        answer = await own.chat("sim", [{"role": "user", "content": "hello"}], max_tokens=TOKENS).result()
    assert text == answer.text != ""


async def test_a_worker_of_another_authority_gets_no_work_and_the_log_says_why(tmp_path: Path) -> None:
    secured = Secured(tmp_path)
    strangers = Authority().write_peers(tmp_path / "strangers", ["worker"])
    flags = [("--tls-cert", "worker.pem"), ("--tls-key", "worker.key"), ("--tls-ca", "ca.pem")]
    foreign = tuple(part for flag, name in flags for part in (flag, str(strangers / name)))
    changed = {**secured.spec.flags, "worker-1": foreign}
    object.__setattr__(secured.spec, "flags", changed)
    async with LocalFleet(secured.spec) as fleet:
        await secured.until_served(fleet)
        async with asyncio.timeout(30):
            while not _refused(_of_target(fleet, "router", fleet.addresses["worker-1"])):
                await asyncio.sleep(0.05)
        async with secured.client(fleet) as http:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(secured.answered(http, secured.key)) for _ in range(8)]
            assert [task.result() for task in tasks] == [TOKENS] * 8


def _refused(broken: list[dict[str, Any]]) -> bool:
    """Whether one of these says so; before it the worker may not have listened yet."""
    return any("certificate is refused here" in record["error"] for record in broken)


def _of_target(fleet: LocalFleet, name: str, target: str) -> list[dict[str, Any]]:
    broken = logged(fleet, name, "worker watch broken")
    return [record for record in broken if record["target"] == target]


async def test_an_expired_certificate_stops_the_start(tmp_path: Path) -> None:
    peers = Authority().write_peers(tmp_path / "peers", ["router"], expired=True)
    flags = [("--tls-cert", "router.pem"), ("--tls-key", "router.key"), ("--tls-ca", "ca.pem")]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tokenfleet.router", "--listen", "127.0.0.1:0"),
        *(part for flag, name in flags for part in (flag, str(peers / name))),
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 1
    assert "certificate has expired" in said.decode()
    assert "Traceback" not in said.decode()
