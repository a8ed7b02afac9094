"""What `helm test` runs in the cluster, run here against a real gateway."""

import asyncio
import os
import sys
from pathlib import Path

from tests.certificates import Authority
from tests.contract.fake_fleet import answer, failing_after, gateway_on_fakes
from tests.contract.keys import made_key, write_keys
from tests.helm.rendering import CHART, Object, containers, objects
from tokenfleet.v1 import common_pb2

PATIENCE_S = 60
QUESTION = "Say hello to the fleet."


async def _run(url: str, **variables: str) -> tuple[int, str]:
    return await ask(url, objects("cpu"), **variables)


async def ask(url: str, all_: list[Object], **variables: str) -> tuple[int, str]:
    """The rendered pod's command with its environment, but for the gateway's address."""
    pod = next(one for one in all_ if one["kind"] == "Pod")
    container = containers(pod["spec"])[0]
    environment = {each["name"]: each["value"] for each in container["env"]} | {"FLEET_URL": url} | variables
    assert container["command"] == ["python", "-c"]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", *container["args"]),
        env={"PATH": os.environ["PATH"], **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode is not None
    return process.returncode, said.decode()


def test_the_pod_runs_the_file() -> None:
    pod: Object = next(one for one in objects("cpu") if one["kind"] == "Pod")
    script = (CHART / "files" / "streamed_request.py").read_text(encoding="utf-8")
    assert containers(pod["spec"])[0]["args"][0].strip() == script.strip()
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"


async def test_a_whole_answer_passes() -> None:
    async with gateway_on_fakes() as fleet:
        code, said = await _run(fleet.url)
        assert code == 0, said
        assert answer(QUESTION, 16) in said
        assert len(fleet.workers[0].submits) == 1


async def test_an_answer_that_breaks_off_fails() -> None:
    async with gateway_on_fakes() as fleet:
        fleet.workers[0].fail = failing_after(4, common_pb2.REASON_ENGINE_FAILED)
        code, said = await _run(fleet.url)
        assert code != 0
        assert "the stream ended with an error" in said


async def test_an_unknown_model_fails_at_once() -> None:
    async with gateway_on_fakes() as fleet:
        code, said = await _run(fleet.url, FLEET_MODEL="nobody", FLEET_TIMEOUT_S="600")
        assert code != 0
        assert "HTTP 404" in said


async def test_a_fleet_that_never_comes_fails_with_the_last_complaint() -> None:
    code, said = await _run("http://127.0.0.1:1", FLEET_TIMEOUT_S="3")
    assert code != 0
    assert "not yet" in said
    assert "no answer in time" in said


async def test_a_key_is_presented(tmp_path: Path) -> None:
    key, line = made_key()
    file = write_keys(tmp_path / "keys.jsonl", line)
    async with gateway_on_fakes(api_keys_file=file) as fleet:
        code, said = await _run(fleet.url)
        assert code != 0
        assert "HTTP 401" in said
        code, said = await _run(fleet.url, FLEET_API_KEY=key)
        assert code == 0, said


async def test_over_tls_whatever_name_the_certificate_is_for(tmp_path: Path) -> None:
    """In the cluster it asks the Service, and the certificate is for the name that clients call."""
    ours, shown = Authority(), tmp_path / "client"
    cert, key = ours.write(tmp_path, "edge", "127.0.0.1")
    shown.mkdir()
    for name, file in zip(("tls.crt", "tls.key"), ours.write(tmp_path, "test", "helm-test"), strict=True):
        (shown / name).write_bytes(file.read_bytes())
    async with gateway_on_fakes(edge_tls_cert=cert, edge_tls_key=key, trusted=ours.pem) as fleet:
        url = fleet.url.replace("127.0.0.1", "localhost")
        code, said = await _run(url, FLEET_CLIENT_CERTIFICATE=str(shown))
        assert code == 0, said
        (shown / "tls.key").unlink()
        code, said = await _run(url, FLEET_CLIENT_CERTIFICATE=str(shown), FLEET_TIMEOUT_S="1")
        assert code != 0, "it shows no certificate"
        code, said = await _run(url.replace("https", "http"), FLEET_TIMEOUT_S="1")
        assert code != 0
