"""The stock OpenAI SDK against a fleet: a whole answer, a streamed one, several at once, a stop string.

Needs `pip install openai`; start a fleet first with `make run`.

    python examples/openai_sdk.py [--url http://127.0.0.1:8080] [--model smollm2-135m-instruct]
"""

import argparse

from openai import OpenAI

QUESTION = "What is the capital of France?"


def main() -> None:
    parser = argparse.ArgumentParser(description="Talk to a fleet with the OpenAI SDK.")
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    flags = parser.parse_args()
    # a local fleet asks for no key, but the SDK insists on one
    client = OpenAI(base_url=f"{flags.url}/v1", api_key="none")

    print("models:", ", ".join(model.id for model in client.models.list()))

    answer = client.chat.completions.create(
        model=flags.model, messages=[{"role": "user", "content": QUESTION}], max_tokens=32, temperature=0
    )
    print("whole:", answer.choices[0].message.content)
    print("usage:", answer.usage)

    print("streamed: ", end="")
    for chunk in client.chat.completions.create(
        model=flags.model,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=32,
        temperature=0,
        stream=True,
    ):
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()

    several = client.completions.create(
        model=flags.model, prompt="Once upon a time", max_tokens=24, n=2, seed=7, stop=["."]
    )
    for choice in several.choices:
        print(f"continuation {choice.index}: {choice.text} ({choice.finish_reason})")


if __name__ == "__main__":
    main()
