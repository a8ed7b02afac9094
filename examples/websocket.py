"""Many answers on one WebSocket: streamed side by side, one cancelled, an error that says what to mend.

Needs `pip install websockets`; start a fleet first with `make run`.

    python examples/websocket.py [--url http://127.0.0.1:8080] [--model smollm2-135m-instruct]

The environment's URL and MODEL are the defaults of the flags.
"""

import argparse
import asyncio
import json
import os
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

QUESTION = "What is the capital of France?"


def chat(request_id: str, content: str, max_tokens: int = 32, **more: Any) -> str:
    """A request is a chat completion's body with an id; every message about it carries that id."""
    messages = [{"role": "user", "content": content}]
    return json.dumps({"request_id": request_id, "messages": messages, "max_tokens": max_tokens, **more})


async def stream_one(socket: ClientConnection, model: str) -> None:
    await socket.send(chat("first", QUESTION, model=model, temperature=0))
    print("streamed: ", end="")
    async for raw in socket:
        message = json.loads(raw)
        if message["type"] == "delta":
            print(message["text"], end="", flush=True)
        elif message["type"] == "loading":
            print(f"[{message['model']}: {message['stage']}]", flush=True)
        elif message["type"] == "error":
            raise SystemExit(f"failed: {message['error']['message']}")
        elif usage := message.get("usage"):
            print("\nusage:", usage)
            return


async def several(socket: ClientConnection, model: str) -> None:
    """Two answers at once; a third is cancelled after its first words, which frees its worker."""
    stories = {"a": "Tell me of the sea.", "b": "Tell me of the moon.", "c": "Tell me a very long story."}
    for request_id, content in stories.items():
        await socket.send(chat(request_id, content, 400 if request_id == "c" else 24, model=model))
    texts = dict.fromkeys(stories, "")
    running = set(stories)
    while running:
        message = json.loads(await socket.recv())
        name = message["request_id"]
        if message["type"] == "delta":
            if name == "c" and not texts[name]:
                await socket.send(json.dumps({"type": "cancel", "request_id": "c"}))
            texts[name] += message["text"]
        elif message["type"] == "error" or "usage" in message:
            running.discard(name)
            end = message["error"]["code"] if message["type"] == "error" else message["finish_reason"]
            print(f"{name} ({end}): {texts[name]!r}")


async def refused(socket: ClientConnection, model: str) -> None:
    await socket.send(chat("bad", QUESTION, model=model, temperature=9))
    error = json.loads(await socket.recv())["error"]
    print(f"refused: {error['message']} (code {error['code']}, field {error['param']})")


async def talk(url: str, model: str) -> None:
    async with connect(f"{url.replace('http', 'ws', 1)}/v1/stream") as socket:
        await stream_one(socket, model)
        await several(socket, model)
        await refused(socket, model)


def main() -> None:
    parser = argparse.ArgumentParser(description="Talk to a fleet over one WebSocket.")
    parser.add_argument("--url", default=os.environ.get("URL", "http://127.0.0.1:8080"))
    parser.add_argument("--model", default=os.environ.get("MODEL", "smollm2-135m-instruct"))
    flags = parser.parse_args()
    asyncio.run(talk(flags.url, flags.model))


if __name__ == "__main__":
    main()
