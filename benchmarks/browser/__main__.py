"""`python -m benchmarks.browser`: clicks, measures, and keeps the results."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import httpx
import typer
from rich.console import Console

from benchmarks._cores import TooFewCores, choose_cores
from benchmarks._measure import until_quiet
from benchmarks._priority import step_forward
from benchmarks._report import BLUE, ORANGE, RESULTS, Report, figure, rounded, versions
from benchmarks.browser import plain
from benchmarks.browser.chromium import Browser, BrowserError, Page, chromium
from benchmarks.browser.serving import serve_page
from benchmarks.gateway.plan import TTFT_MS, model_name
from benchmarks.gateway.systems import NotResident, System, fleet
from loadtest.driver.stats import percentile
from tokenfleet.cli.local_fleet import LocalFleetError

STATE = Path(".tokenfleet/bench-browser").absolute()
MODEL = model_name(20)
SHOWN = {"sse": "SSE", "websocket": "WebSocket"}
TRANSPORTS = tuple(SHOWN)
WARMUPS, CLICKS, TOKENS = 5, 40, 8
ANSWER_S = 20.0
QUIET_SHARE, QUIET_PATIENCE_S = 0.08, 20.0
MEASURED_WITH = ("tokenfleet", "uvicorn", "uvloop", "websockets")
_RECORD = """
    document.querySelector("#send").addEventListener("click", (event) => {
        window.clicked = event.timeStamp; window.first = window.painted = 0;
    }, true);
    new MutationObserver(() => {
        if (first || !document.querySelector("#answer").textContent) return;
        window.first = performance.now();
        // a task behind the next frame runs when that has been drawn
        requestAnimationFrame(() => setTimeout(() => { window.painted = performance.now(); }));
    }).observe(document.querySelector("#answer"), {childList: true});
"""
_OVER = "document.querySelector('#state').textContent === 'Complete' && painted > 0"

Samples = dict[str, list[float]]  # milliseconds, by figure and transport

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(highlight=False, soft_wrap=True)


@app.command()
def main(keep: Annotated[bool, typer.Option(help="write the results")] = True) -> None:
    """Measures the way from a click to the first token on the page."""
    try:
        samples, browser_version = asyncio.run(_run())
    except (LocalFleetError, NotResident, BrowserError, TooFewCores) as error:
        console.print(f"[bold red]browser benchmark:[/] {error}")
        raise typer.Exit(1) from None
    figures = figures_of(samples)
    for name, value in figures.items():
        console.print(f"{name:48} {rounded(value):>10g}")
    if keep:
        report = Report(
            command="make bench-browser",
            figures=figures,
            rows=[{"what": name, "ms": [rounded(ms) for ms in values]} for name, values in samples.items()],
            versions=versions(*MEASURED_WITH) | {"browser": browser_version, "engine": "sim"},
        )
        report.write(RESULTS / "browser.json")
        draw(samples, RESULTS / "browser.png")
        console.print("wrote benchmarks/results/browser.json, browser.png")


def figures_of(samples: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Medians and 95th percentiles, and what the browser adds to the median."""
    figures: dict[str, float] = {}
    for name, values in samples.items():
        what, transport = name.split("/")
        figures[f"{what}_ms_p50/{transport}"] = percentile(values, 50)
        figures[f"{what}_ms_p95/{transport}"] = percentile(values, 95)
    for transport in TRANSPORTS:
        clicked = figures[f"click_to_first_token_ms_p50/{transport}"]
        figures[f"browser_adds_ms_p50/{transport}"] = (
            clicked - figures[f"request_to_first_token_ms_p50/{transport}"]
        )
    return figures


async def _run() -> tuple[Samples, str]:
    cores = choose_cores()
    step_forward()
    async with fleet(STATE, cores, frames=True) as system, chromium() as browser:
        step_forward([browser.pid, *(pid for pids in system.groups.values() for pid in pids)])
        await until_quiet(system.groups, QUIET_SHARE, QUIET_PATIENCE_S)
        version = (await browser.command("Browser.getVersion"))["product"]
        request = await _request(system)
        console.print(f"{version}: {CLICKS} clicks on each of {' and '.join(TRANSPORTS)}")
        with serve_page() as url:
            return await _measure(browser, url, system, request), version


async def _measure(browser: Browser, url: str, system: System, request: dict[str, Any]) -> Samples:
    """In turns, so that whatever else the machine does meets all alike."""
    preset = {
        "gateway": f"http://{system.host}:{system.port}",
        "model": request["model"],
        "prompt": request["messages"][0]["content"],
    }
    samples: Samples = {}
    async with (
        browser.page(f"{url}?{urlencode(preset)}") as page,
        plain.both(system.host, system.port) as clients,
    ):
        await page.until("document.querySelector('#model').options.length > 0")
        await page.evaluate(f"document.querySelector('#max-tokens').value = {TOKENS}")
        await page.evaluate(_RECORD)
        for turn in range(WARMUPS + CLICKS):
            for transport in TRANSPORTS:
                first, painted = await _click(page, transport)
                async with asyncio.timeout(ANSWER_S):
                    without = 1000 * await clients[transport].first_token_s(request)
                if turn >= WARMUPS:
                    samples.setdefault(f"click_to_first_token/{transport}", []).append(first)
                    samples.setdefault(f"click_to_painted_token/{transport}", []).append(painted)
                    samples.setdefault(f"request_to_first_token/{transport}", []).append(without)
    return samples


async def _click(page: Page, transport: str) -> tuple[float, float]:
    """Milliseconds from the click to the first token in the document, and on the screen."""
    await page.click(f"label:has([value={transport}])")
    await page.click("#send")
    await page.until(_OVER, ANSWER_S)
    first, painted = await page.evaluate("[first - clicked, painted - clicked]")
    return first, painted


async def _request(system: System) -> dict[str, Any]:
    """One whose first token is text: half a character would show with the second token only."""
    async with httpx.AsyncClient(base_url=f"http://{system.host}:{system.port}") as client:
        for number in range(100):
            messages = [{"role": "user", "content": f"Say hello, number {number}."}]
            request = {"model": MODEL, "messages": messages, "max_tokens": TOKENS}
            answer = await client.post("/v1/chat/completions", json=request | {"max_tokens": 1})
            text = answer.raise_for_status().json()["choices"][0]["message"]["content"]
            if text and "\ufffd" not in text:
                return request
    raise BrowserError("no prompt was found whose first token is text")


def draw(samples: Mapping[str, Sequence[float]], path: Path) -> None:
    names = {
        "request_to_first_token": "without a browser",
        "click_to_first_token": "click to token in the page",
        "click_to_painted_token": "click to token on the screen",
    }
    title = f"Until the first token (the engine's own time is {TTFT_MS} ms)"
    with figure(path, title=title, xlabel="milliseconds", ylabel="") as axes:
        rows = [(what, transport) for transport in reversed(TRANSPORTS) for what in reversed(names)]
        for place, (what, transport) in enumerate(rows):
            colour = BLUE if transport == "sse" else ORANGE
            values = samples[f"{what}/{transport}"]
            axes.scatter(values, [place] * len(values), color=colour, alpha=0.25, s=14, linewidths=0)
            middle = percentile(values, 50)
            axes.scatter([middle], [place], color=colour, marker="|", s=420, linewidths=2.5)
            axes.annotate(f"{middle:.1f}", (middle, place + 0.3), ha="center", fontsize=8, color=colour)
        axes.set_yticks(range(len(rows)), [f"{names[what]}, {SHOWN[transport]}" for what, transport in rows])
        axes.set_xlim(0)
        axes.set_ylim(-0.6, len(rows) - 0.4)


if __name__ == "__main__":
    app()
