"""A model's file goes while the model is loaded."""

import shutil
from pathlib import Path

import httpx
import pytest

from tests import real_model
from tests.e2e.catalogs import write_catalog
from tests.e2e.sim_fleet import until_served
from tests.e2e.test_models import CHAT, entry, question, state_of
from tokenfleet.cli.local_fleet import FleetSpec, LocalFleet

pytestmark = [pytest.mark.e2e, pytest.mark.real_model, pytest.mark.timeout(180)]


async def test_a_file_that_goes_while_its_model_is_loaded_is_missed_only_by_the_next_load(
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.gguf"
    shutil.copy(real_model.cache().weights(real_model.spec()), path)
    spec = FleetSpec(
        state_dir=tmp_path / "state",
        workers=1,
        tokenizers=1,
        engines=("llamacpp",),
        catalog=write_catalog(
            tmp_path / "catalog.yaml", entry("mine", f"file://{path}", context_length=2048, policy="warm")
        ),
        grace_s=3,
    )
    async with LocalFleet(spec) as fleet, httpx.AsyncClient(base_url=fleet.http_url, timeout=60) as http:
        await until_served(fleet, "mine")
        first = await http.post(CHAT, json=question("mine") | {"temperature": 0})
        kept = path.rename(tmp_path / "kept")
        second = await http.post(CHAT, json=question("mine") | {"temperature": 0})
        text = first.json()["choices"][0]["message"]["content"]
        assert second.json()["choices"][0]["message"]["content"] == text, "it is in memory"
        unloaded = await http.post("/admin/models/unload", json={"model": "mine"})
        assert unloaded.json()["workers"][0]["done"]
        third = await http.post(CHAT, json=question("mine"))
        assert (third.status_code, third.json()["error"]["code"]) == (503, "load_failed")
        assert "does not exist on this node" in third.json()["error"]["message"]
        kept.rename(path)
        await until_served(fleet, "mine")
        last = await http.post(CHAT, json=question("mine") | {"temperature": 0})
        assert last.json()["choices"][0]["message"]["content"] == text
        assert (await state_of(http, "mine"))["quarantine"] is None
