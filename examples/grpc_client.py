"""The client SDK against a fleet: a streamed answer, several at once, an error, and the same with asyncio.

Needs `pip install tokenfleet`; start a fleet first with `make run`.

    python examples/grpc_client.py [--target 127.0.0.1:8081] [--model smollm2-135m-instruct]
"""

import argparse
import asyncio

from tokenfleet.client import AsyncFleetClient, FleetClient, InvalidRequest, Message

QUESTION = "What is the capital of France?"


def threads(target: str, model: str) -> None:
    # a load of a cold model may take a while: `timeout` is for the whole answer
    with FleetClient(target, timeout=120, wait_for_ready=True) as fleet:
        print("models:", ", ".join(found.name for found in fleet.models()))
        print("tokens in the question:", fleet.count_tokens(model, QUESTION).tokens)

        print("streamed: ", end="")
        stream = fleet.chat(model, QUESTION, max_tokens=32, temperature=0)
        for delta in stream:
            print(delta.text, end="", flush=True)
        print("\nusage:", stream.result().usage)

        several = fleet.generate(model, "Once upon a time", max_tokens=24, n=2, seed=7, stop=".")
        for number, choice in enumerate(several.result().choices):
            print(f"continuation {number}: {choice.text} ({choice.finish_reason})")

        try:
            fleet.chat(model, QUESTION, temperature=9).text()
        except InvalidRequest as error:
            print(f"refused: {error} (field {error.field!r}; to do: {error.remedy})")


async def event_loop(target: str, model: str) -> None:
    async with AsyncFleetClient(target, timeout=120) as fleet:
        conversation = [Message("system", "Answer in one word."), Message("user", QUESTION)]
        answers = (fleet.chat(model, conversation, max_tokens=8, seed=seed).text() for seed in range(3))
        for text in await asyncio.gather(*answers):
            print("one of three:", text)

        async with fleet.chat(model, "Tell me a long story.") as stream:
            async for delta in stream:
                print("left after:", repr(delta.text))
                break  # closes the stream, which frees the worker at once


def main() -> None:
    parser = argparse.ArgumentParser(description="Talk to a fleet with its client SDK.")
    parser.add_argument("--target", default="127.0.0.1:8081")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    flags = parser.parse_args()
    threads(flags.target, flags.model)
    asyncio.run(event_loop(flags.target, flags.model))


if __name__ == "__main__":
    main()
