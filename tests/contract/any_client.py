"""Both clients of the SDK behind one interface, so that each test tries either."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tokenfleet.client import Answer, AsyncFleetClient, Delta, FleetClient, FleetError

KINDS = ("sync", "async")


class AnyClient:
    """Calls methods by name; the threaded client runs in threads."""

    def __init__(self, client: FleetClient | AsyncFleetClient) -> None:
        self.client: Any = client
        self._threaded = isinstance(client, FleetClient)

    async def result(self, method: str, *arguments: Any, **options: Any) -> Answer:
        if self._threaded:
            return await asyncio.to_thread(
                lambda: getattr(self.client, method)(*arguments, **options).result()
            )
        result: Answer = await getattr(self.client, method)(*arguments, **options).result()
        return result

    async def deltas(self, method: str, *arguments: Any, **options: Any) -> list[Delta]:
        seen: list[Delta] = []
        await self.read(seen, method, *arguments, **options)
        return seen

    async def read(self, seen: list[Delta], method: str, *arguments: Any, **options: Any) -> None:
        """Adds the stream's deltas to `seen` as they arrive."""
        start = getattr(self.client, method)
        if self._threaded:
            await asyncio.to_thread(lambda: seen.extend(iter(start(*arguments, **options))))
            return
        async for delta in start(*arguments, **options):
            seen.append(delta)

    async def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """A method that is no stream."""
        if self._threaded:
            return await asyncio.to_thread(lambda: getattr(self.client, method)(*arguments, **options))
        return await getattr(self.client, method)(*arguments, **options)

    async def failure(self, method: str, *arguments: Any, **options: Any) -> FleetError:
        """The error of a stream that has to fail."""
        try:
            await self.result(method, *arguments, **options)
        except FleetError as error:
            return error
        raise AssertionError("the call did not fail")


@asynccontextmanager
async def client_of(kind: str, targets: Any, **settings: Any) -> AsyncIterator[AnyClient]:
    if kind == "sync":
        with FleetClient(targets, **settings) as client:
            yield AnyClient(client)
    else:
        async with AsyncFleetClient(targets, **settings) as client_:
            yield AnyClient(client_)


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)
