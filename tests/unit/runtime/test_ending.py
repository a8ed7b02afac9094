import asyncio

from tokenfleet.runtime.ending import end


async def test_a_task_that_loses_a_cancellation_is_cancelled_again() -> None:
    lost = 0

    async def stubborn() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                lost += 1
                if lost == 3:
                    raise

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await end(task)
    assert task.cancelled()
    assert lost == 3


async def test_how_it_ended_is_of_no_interest() -> None:
    async def broken() -> None:
        raise ValueError

    task = asyncio.create_task(broken())
    await end(task)
    assert task.done()
