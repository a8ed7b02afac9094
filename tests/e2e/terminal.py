"""A program on a terminal of its own: what a person types goes in, what the person would see comes out."""

import asyncio
import os
import pty
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

# Makes its stdin the controlling terminal, so that a typed Ctrl-C is a signal, then becomes the program.
_ON_A_TERMINAL = "import os, sys; os.login_tty(0); os.execvp(sys.argv[1], sys.argv[1:])"
CTRL_C, CTRL_D = "\x03", "\x04"
PATIENCE_S = 60.0
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class TerminalSession:
    """`raw` is all that was written; `shown` is the same without escape sequences."""

    def __init__(self, process: asyncio.subprocess.Process, descriptor: int) -> None:
        self.process = process
        self.raw = ""
        self._descriptor = descriptor
        self._seen = 0
        self._changed = asyncio.Event()

    @property
    def shown(self) -> str:
        return _ESCAPES.sub("", self.raw).replace("\r\n", "\n")

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    async def until(self, pattern: str) -> str:
        """What is shown behind the last match, up to the end of this pattern's; fails when it never comes."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not (found := re.search(pattern, self.shown[self._seen :])):
                    self._changed.clear()
                    if self.process.returncode is not None and not self._readable():
                        raise AssertionError(f"it ended without {pattern!r}:\n{self.shown}")
                    await self._changed.wait()
        except TimeoutError as error:
            raise AssertionError(f"{pattern!r} did not come:\n{self.shown}") from error
        passed = self.shown[self._seen : self._seen + found.end()]
        self._seen += found.end()
        return passed

    async def ended(self) -> int:
        """The exit code."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self.process.wait()
        except TimeoutError as error:
            raise AssertionError(f"it did not end:\n{self.shown}") from error

    def read(self) -> None:
        """Takes what the program wrote."""
        self._readable()
        self._changed.set()

    def _readable(self) -> bool:
        try:
            data = os.read(self._descriptor, 65536)
        except (BlockingIOError, OSError):  # nothing there; on Linux EIO once the program is gone
            return False
        self.raw += data.decode(errors="replace")
        return bool(data)


@asynccontextmanager
async def on_terminal(
    *command: str, env: Mapping[str, str], cwd: Path | None = None
) -> AsyncIterator[TerminalSession]:
    """Runs the command on a terminal of 100 columns; kills it at the end if it still runs."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-c", _ON_A_TERMINAL, *command),
        stdin=theirs,
        cwd=cwd,
        env={**env, "TERM": "xterm-256color", "COLUMNS": "100"},
    )
    os.close(theirs)
    session = TerminalSession(process, ours)
    loop = asyncio.get_running_loop()
    loop.add_reader(ours, session.read)
    try:
        yield session
    finally:
        loop.remove_reader(ours)
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(ours)
