"""What `helm test` runs: one streamed chat completion through the fleet, checked to its last event.

Standard library only, so that it runs in the gateway's own image.
"""

import http.client
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request

URL = os.environ["FLEET_URL"]
DEADLINE = time.monotonic() + float(os.environ["FLEET_TIMEOUT_S"])
PAUSE_S = 2.0
RETRIED = {429, 502, 503, 504}


def main() -> None:
    model = os.environ.get("FLEET_MODEL") or first_model()
    print(f"asking {model} at {URL}", flush=True)
    text, reason = until_answered(lambda: streamed_answer(model))
    print(f"{model}: {text!r} ({reason})")


def first_model() -> str:
    listed = until_answered(lambda: json.load(send("/v1/models")))
    if not listed["data"]:
        sys.exit("the catalog is empty: /v1/models lists no model")
    return str(listed["data"][0]["id"])


def streamed_answer(model: str) -> tuple[str, str]:
    """The answer's text and why it ended. Leaves the process when the stream is not a whole answer."""
    question = {"role": "user", "content": "Say hello to the fleet."}
    body = {"model": model, "messages": [question], "max_tokens": 16, "temperature": 0, "stream": True}
    text, reason, done = "", "", False
    with send("/v1/chat/completions", body) as stream:
        for line in stream:
            data = line.decode().strip().removeprefix("data: ")
            if data == "[DONE]":
                done = True
            elif line.startswith(b"data: "):
                event = json.loads(data)
                if "error" in event:
                    sys.exit(f"the stream ended with an error: {event['error']}")
                for choice in event["choices"]:
                    text += choice["delta"].get("content") or ""
                    reason = choice["finish_reason"] or reason
    if not (text and reason and done):
        sys.exit(f"not a whole answer: text {text!r}, finish_reason {reason!r}, [DONE] {done}")
    return text, reason


def send(path, body=None):
    request = urllib.request.Request(URL + path, json.dumps(body).encode() if body else None)
    request.add_header("Content-Type", "application/json")
    if key := os.environ.get("FLEET_API_KEY"):
        request.add_header("Authorization", f"Bearer {key}")
    return urllib.request.urlopen(request, timeout=max(1.0, DEADLINE - time.monotonic()), context=tls())


def tls():
    """None without TLS. The certificate is for the name by which clients call, so it is not checked here."""
    if not URL.startswith("https:"):
        return None
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if folder := os.environ.get("FLEET_CLIENT_CERTIFICATE"):
        context.load_cert_chain(f"{folder}/tls.crt", f"{folder}/tls.key")
    return context


def until_answered(ask):
    """Asks again while the fleet is starting; leaves the process with the last complaint at the deadline."""
    while True:
        try:
            return ask()
        except urllib.error.HTTPError as error:
            complaint = f"HTTP {error.code}: {error.read().decode(errors='replace')}"
            if error.code not in RETRIED:
                sys.exit(complaint)
        except (OSError, http.client.HTTPException) as error:
            complaint = str(error) or type(error).__name__
        if time.monotonic() + PAUSE_S > DEADLINE:
            sys.exit(f"no answer in time; the last complaint was: {complaint}")
        print(f"not yet: {complaint}", flush=True)
        time.sleep(PAUSE_S)


main()
