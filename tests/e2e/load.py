"""Clients that ask again and again while something happens to the fleet, and keep every answer."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.e2e.streams import Answered, chat

PROMPTS = 8
TOKENS = 24


class Load:
    """`clients` loops over a few prompts whose undisturbed answers are known."""

    def __init__(self, url: Callable[[], str], model: str) -> None:
        """`url` names the gateway for the next request, as a load balancer would."""
        self.answers: list[Answered] = []
        self._url = url
        self._model = model
        self._reference: dict[str, str] = {}
        self._stopping = False

    async def learn(self) -> None:
        """Asks each prompt once, with nothing else going on."""
        for number in range(PROMPTS):
            answer = await self._ask(f"Tell me story number {number}")
            assert answer.done, answer.error
            self._reference[answer.prompt] = answer.text

    @property
    def lost(self) -> list[str]:
        """What went wrong, request by request."""
        return [answer.error or repr(answer.text) for answer in self.answers if not self._right(answer)]

    @asynccontextmanager
    async def running(self, clients: int) -> AsyncIterator[None]:
        """The loops run meanwhile; afterwards each finishes its last request."""
        loops = [asyncio.create_task(self._repeat(number)) for number in range(clients)]
        try:
            yield
        finally:
            self._stopping = True
            async with asyncio.timeout(60):
                await asyncio.gather(*loops)

    async def answered(self, more: int) -> None:
        """Waits until so many more requests have been answered."""
        wanted = len(self.answers) + more
        async with asyncio.timeout(60):
            while len(self.answers) < wanted:
                await asyncio.sleep(0.02)

    async def _repeat(self, number: int) -> None:
        prompts = list(self._reference)
        while not self._stopping:
            self.answers.append(await self._ask(prompts[number % len(prompts)]))
            number += 1

    async def _ask(self, prompt: str) -> Answered:
        try:
            async with asyncio.timeout(60):
                return await chat(self._url(), self._model, prompt, TOKENS)
        except (OSError, TimeoutError) as error:
            return Answered(prompt, error=f"{type(error).__name__}: {error}")

    def _right(self, answer: Answered) -> bool:
        return answer.done and not answer.error and answer.text == self._reference[answer.prompt]
