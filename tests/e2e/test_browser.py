"""The example page in a real Chromium, clicked with the mouse, against a real fleet."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest
import pytest_asyncio

from benchmarks.browser.chromium import HOW_TO_INSTALL, Browser, Page, chromium, find_chromium
from benchmarks.browser.serving import FOLDER, serve_page
from tests.contract.fake_fleet import answer, gateway_on_fakes
from tests.contract.keys import made_key, write_keys
from tests.e2e.sim_fleet import scrape, sim_fleet
from tests.e2e.streams import chat
from tokenfleet.cli.local_fleet import LocalFleet

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.browser,
    pytest.mark.timeout(180),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(find_chromium() is None, reason=HOW_TO_INSTALL),
]

TRANSPORTS = ("sse", "websocket")
PROMPT = "a long story"
ITL_MS = 20
NOBODY = "http://127.0.0.1:1"
# Every text that the page was given, each by itself.
RECORD = """
    window.shown = [];
    new MutationObserver((records) => {
        for (const record of records)
            for (const node of record.addedNodes) shown.push(node.textContent);
    }).observe(document.querySelector("#answer"), {childList: true});
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalFleet]:
    """One whose gateway lets pages from disk in, besides those of this machine."""
    flags = {"gateway": ("--allowed-origins", "127.0.0.1,null")}
    async with sim_fleet(tmp_path_factory.mktemp("fleet"), workers=1, itl_ms=ITL_MS, flags=flags) as fleet:
        yield fleet


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


@asynccontextmanager
async def opened(
    browser: Browser, gateway: str, transport: str, tokens: int, model: str = "sim"
) -> AsyncIterator[Page]:
    """The page, ready to be clicked."""
    preset = {"gateway": gateway, "model": model, "prompt": PROMPT, "transport": transport}
    with serve_page() as url:
        async with browser.page(f"{url}?{urlencode(preset)}") as page:
            await page.until("document.querySelector('#model').options.length > 0")
            await page.evaluate(f"document.querySelector('#max-tokens').value = {tokens}")
            await page.evaluate(RECORD)
            yield page


async def state(page: Page, wanted: str) -> None:
    await page.until(f"document.querySelector('#state').textContent === {json.dumps(wanted)}")


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_an_answer_appears_token_by_token(fleet: LocalFleet, browser: Browser, transport: str) -> None:
    expected = await chat(fleet.http_url, "sim", PROMPT, 48)
    async with opened(browser, fleet.http_url, transport, 48) as page:
        await page.click("#send")
        await state(page, "Complete")
        shown = await page.evaluate("shown")
        assert "".join(shown) == expected.text
        # a busy machine may merge a few; a page that waits for the end shows one
        assert len(shown) >= expected.frames / 2, shown
        assert await page.text("#tokens") == "48"
        assert (await page.text("#ttft")).endswith(" ms")
        assert float(await page.text("#rate")) > 0
        assert await page.evaluate("document.querySelector('#error').hidden")


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_stop_frees_the_worker_and_the_page_can_ask_again(
    fleet: LocalFleet, browser: Browser, transport: str
) -> None:
    metrics = f"http://{fleet.metrics_addresses['worker-0']}/metrics"
    async with opened(browser, fleet.http_url, transport, 8000) as page:
        await page.click("#send")
        await page.until("shown.length >= 3")
        assert await scrape(metrics, "tokenfleet_worker_requests_running") == 1
        await page.click("#stop")
        await state(page, "Stopped")
        async with asyncio.timeout(20):
            while await scrape(metrics, "tokenfleet_worker_requests_running"):
                await asyncio.sleep(0.02)
        await page.evaluate("document.querySelector('#max-tokens').value = 4")
        await page.click("#send")
        await state(page, "Complete")


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_an_error_is_shown_in_the_fleets_own_words(
    fleet: LocalFleet, browser: Browser, transport: str
) -> None:
    async with opened(browser, fleet.http_url, transport, 4, model="absent") as page:
        await page.click("#send")
        await state(page, "Failed")
        assert "'absent'" in await page.text("#error")
        assert not await page.evaluate("document.querySelector('#error').hidden")


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_fleet_that_wants_a_key_says_so_and_takes_it(
    browser: Browser, tmp_path: Path, transport: str
) -> None:
    key, line = made_key("acme")
    async with (
        gateway_on_fakes(api_keys_file=write_keys(tmp_path / "keys", line)) as fleet,
        opened(browser, fleet.url, transport, 20, model="letters") as page,
    ):
        await page.click("#send")
        await state(page, "Failed")
        assert "key" in await page.text("#error")
        await page.evaluate(f"document.querySelector('#key').value = {json.dumps(key)}")
        await page.click("#send")
        await state(page, "Complete")
        assert await page.text("#answer") == answer(PROMPT, 20)


def from_disk(gateway: str) -> str:
    preset = {"gateway": gateway, "model": "sim", "prompt": PROMPT}
    return f"{(FOLDER / 'index.html').as_uri()}?{urlencode(preset)}"


async def test_a_page_from_the_disk_is_told_what_to_allow_and_works_once_it_is(
    fleet: LocalFleet, browser: Browser
) -> None:
    async with browser.page(from_disk(NOBODY)) as page:
        await page.until("!document.querySelector('#error').hidden")
        assert "--allowed-origins that include null" in await page.text("#error")
    async with browser.page(from_disk(fleet.http_url)) as page:
        await page.until("document.querySelector('#model').options.length > 0")
        await page.evaluate("document.querySelector('#max-tokens').value = 4")
        await page.click("#send")
        await state(page, "Complete")


@pytest.mark.parametrize("width", [320, 900])
async def test_nothing_is_wider_than_the_screen(browser: Browser, width: int) -> None:
    with serve_page() as url:
        async with browser.page(f"{url}?gateway={NOBODY}", width=width) as page:
            await page.until("!document.querySelector('#error').hidden")
            await page.evaluate("document.querySelector('#answer').append('word'.repeat(200))")
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
