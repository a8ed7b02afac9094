"""Runs inside the cluster, in the gateway's own image: clients that ask until a file says to stop.

Standard library only. Prints one JSON line at the end: how many requests, and what was lost.
"""

import http.client
import json
import os
import pathlib
import threading
import time
from typing import Any
from urllib.parse import urlsplit

URL = urlsplit(os.environ["FLEET_URL"])
MODEL = os.environ["FLEET_MODEL"]
CLIENTS = int(os.environ["FLEET_CLIENTS"])
STOP = pathlib.Path("/tmp/stop")
PROMPTS = [f"Tell me story number {number}" for number in range(8)]
TOKENS = 24

answers: list[str] = []  # each empty, or what was wrong with it


def ask(prompt: str) -> str:
    """The streamed text; raises on anything but a whole answer. A connection of its own, no retry."""
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "stream": True,
    }
    connection = http.client.HTTPConnection(str(URL.hostname), URL.port, timeout=60)
    try:
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {response.read(300)!r}")
        pieces: list[str] = []
        for line in response:
            payload = line.decode().strip().removeprefix("data: ")
            if payload == "[DONE]":
                return "".join(pieces)
            if payload:
                told = json.loads(payload)
                if "error" in told:
                    raise RuntimeError(told["error"]["message"])
                pieces += [choice["delta"].get("content") or "" for choice in told["choices"]]
        raise RuntimeError("the stream ended without [DONE]")
    finally:
        connection.close()


def until_answered(prompt: str) -> str:
    deadline = time.monotonic() + 120
    while True:
        try:
            return ask(prompt)
        except (OSError, RuntimeError, http.client.HTTPException):
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def repeat(number: int, reference: dict[str, str]) -> None:
    while not STOP.exists():
        prompt = PROMPTS[number % len(PROMPTS)]
        number += 1
        began = time.strftime("%H:%M:%S")
        try:
            wrong = "" if ask(prompt) == reference[prompt] else "another text than before"
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"
        answers.append(f"{began} {wrong}" if wrong else "")


def main() -> None:
    reference = {prompt: until_answered(prompt) for prompt in PROMPTS}
    print("started", flush=True)
    threads = [threading.Thread(target=repeat, args=(number, reference)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"requests": len(answers), "lost": list(filter(None, answers))}), flush=True)


main()
