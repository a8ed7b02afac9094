import pytest_asyncio

from tests.unit.worker.hosted.toy_engine import Heard


@pytest_asyncio.fixture
async def heard() -> Heard:
    return Heard()
