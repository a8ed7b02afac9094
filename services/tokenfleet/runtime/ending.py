"""Ending a task that may be inside a library.

A cancellation is an exception that is raised once, wherever the task stands, and what catches it there has
lost it for everybody: redis-py does, when it comes in the middle of a command. A task that was cancelled and
goes on would be waited for without end, and its process with it.
"""

from __future__ import annotations

import asyncio

AGAIN_S = 0.1


async def end(task: asyncio.Task[None]) -> None:
    """Cancels until it has ended; how it ended is of no interest any more."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=AGAIN_S)
    await asyncio.gather(task, return_exceptions=True)
