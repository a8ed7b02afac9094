"""A headless Chromium, driven over its DevTools protocol.

The protocol is JSON over a WebSocket, which the project's own dependencies speak; of the hundreds of commands
a handful is needed to open a page, click like a person and look at it. The browser is tied to this process by
the kernel and lives in a throw-away profile.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from tokenfleet.cli.local_fleet import launch

HOW_TO_INSTALL = (
    "no Chromium on the path; on Debian: apt-get install --no-install-recommends chromium "
    "(or name one in $CHROMIUM)"
)
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
START_S, COMMAND_S, POLL_S = 60.0, 30.0, 0.02
_LISTENING = b"DevTools listening on "
_MIDDLE = """(() => {
    const it = document.querySelector(%s);
    it.scrollIntoView({block: "center"});
    const box = it.getBoundingClientRect();
    return {x: box.x + box.width / 2, y: box.y + box.height / 2};
})()"""


class BrowserError(Exception):
    """The browser or the page did not do what it was told to; the message has its own words."""


def find_chromium() -> str | None:
    """The program to run, if there is one."""
    named = os.environ.get("CHROMIUM", "")
    return next((found for name in (named, *NAMES) if (found := shutil.which(name))), None)


@asynccontextmanager
async def chromium(*flags: str) -> AsyncIterator[Browser]:
    """A browser of its own, gone at the end. Raises BrowserError when there is none, or it does not start."""
    program = find_chromium()
    if program is None:
        raise BrowserError(HOW_TO_INSTALL)
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), ""),
            *(program, "--headless=new", "--remote-debugging-port=0", f"--user-data-dir={profile}"),
            *(
                "--no-first-run",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-extensions",
                "--hide-scrollbars",
            ),
            # its sandbox does not work for root, and the pages here are the project's own
            *(("--no-sandbox",) if os.geteuid() == 0 else ()),
            *(*flags, "about:blank"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            async with connect(await _address(process), max_size=None) as socket:
                yield Browser(socket, process.pid)
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.communicate()


async def _address(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    said: list[bytes] = []
    try:
        async with asyncio.timeout(START_S):
            while line := await process.stderr.readline():
                if line.startswith(_LISTENING):
                    return line.removeprefix(_LISTENING).decode().strip()
                said.append(line)
    except TimeoutError:
        pass
    raise BrowserError(f"Chromium did not start: {b''.join(said).decode(errors='replace')[-2000:]}")


class Browser:
    """Sends commands and hands their answers to whoever waits for them."""

    def __init__(self, socket: ClientConnection, pid: int) -> None:
        self.pid = pid
        self._socket = socket
        self._numbers = itertools.count(1)

    async def command(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """One command at a time; events that come in between are of no interest. Raises BrowserError."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        async with asyncio.timeout(COMMAND_S):
            await self._socket.send(json.dumps(message | ({"sessionId": session} if session else {})))
            while (answer := json.loads(await self._socket.recv())).get("id") != number:
                pass
        if error := answer.get("error"):
            raise BrowserError(f"{method}: {error['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    @asynccontextmanager
    async def page(self, url: str, *, width: int = 900, height: int = 900) -> AsyncIterator[Page]:
        """A tab of that size, loaded."""
        target = (await self.command("Target.createTarget", url="about:blank"))["targetId"]
        attached = await self.command("Target.attachToTarget", targetId=target, flatten=True)
        page = Page(self, attached["sessionId"])
        try:
            await page.resize(width, height)
            await page.open(url)
            yield page
        finally:
            await self.command("Target.closeTarget", targetId=target)


class Page:
    """A tab. Selectors are CSS's."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    async def open(self, url: str) -> None:
        answer = await self._command("Page.navigate", url=url)
        if error := answer.get("errorText"):
            raise BrowserError(f"{url}: {error}")
        await self.until(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    async def evaluate(self, expression: str) -> Any:
        """The value of JavaScript, as JSON has it; a promise's once it is there."""
        answer = await self._command(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise BrowserError(json.dumps(answer["exceptionDetails"])[:2000])
        return answer["result"].get("value")

    async def until(self, condition: str, patience_s: float = 30.0) -> Any:
        """Waits until the JavaScript is true, and answers its value."""
        deadline = monotonic() + patience_s
        while not (value := await self.evaluate(condition)):
            if monotonic() > deadline:
                shown = await self.evaluate("document.body.innerText")
                raise BrowserError(f"not within {patience_s:g} s: {condition}; the page shows:\n{shown}")
            await asyncio.sleep(POLL_S)
        return value

    async def text(self, selector: str) -> str:
        return str(await self.evaluate(f"document.querySelector({json.dumps(selector)}).textContent"))

    async def click(self, selector: str) -> None:
        """With the mouse, on the middle of what a person would see."""
        middle = await self.evaluate(_MIDDLE % json.dumps(selector))
        for kind in ("mousePressed", "mouseReleased"):
            await self._command("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **middle)

    async def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self._command("Emulation.setDeviceMetricsOverride", **size)

    async def dark(self, wanted: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if wanted else "light"}
        await self._command("Emulation.setEmulatedMedia", features=[scheme])

    async def screenshot(self) -> bytes:
        """All of the page, as PNG."""
        answer = await self._command("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(answer["data"])

    async def _command(self, method: str, **parameters: Any) -> dict[str, Any]:
        return await self._browser.command(method, self._session, **parameters)
