"""`aima mcp`: the Model Context Protocol on stdin and stdout, started by the SDK's client as an agent starts it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client as McpClient
from mcp import StdioServerParameters
from mcp.client.stdio import stdio_client

from aima_core.testing import serving, settings_for, until
from tests.core.toy import COUNTER, TALLY
from tests.gateway.mcp.fixtures import MODERN, SESSIONS, Doors, doors, error_of, hearing, listed

ERAS = pytest.mark.parametrize("mode", [MODERN, SESSIONS])
COMMAND = ["-m", "services.cli.entry", "mcp"]


def environ(folder: Path, url: str, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AIMA_")}
    return kept | {"AIMA_DATA": str(folder), "AIMA_NATS_URL": url} | more


@contextlib.asynccontextmanager
async def agent(found: Doors, mode: str, *words: str, heard: Any = None, **more: str) -> AsyncIterator[Any]:
    """Start `aima mcp` with these words and connect to it."""
    given = StdioServerParameters(
        command=sys.executable, args=[*COMMAND, *words], env=environ(found.folder, found.nats, **more)
    )
    with (found.folder / "mcp.err").open("a") as errors:
        async with McpClient(stdio_client(given, errors), mode=mode, message_handler=heard) as client:
            yield client


async def run(folder: Path, url: str, *words: str, said: bytes = b"", **more: str) -> tuple[int, str, str]:
    """Run `aima mcp` until it ends by itself; return its exit code, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *COMMAND,
        *words,
        env=environ(folder, url, **more),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await asyncio.wait_for(process.communicate(said), 30)
    assert process.returncode is not None
    return process.returncode, out.decode(), errors.decode()


@ERAS
async def test_an_agent_lists_calls_and_is_refused(tmp_path: Path, mode: str) -> None:
    async with doors(tmp_path, COUNTER) as found, agent(found, mode) as mcp:
        tools = {tool.name for tool in (await mcp.list_tools()).tools}
        assert {"counter_add", "counter_get", "gateway_create_key"} <= tools
        added = await mcp.call_tool("counter_add", {"counter_id": "c1", "amount": 4})
        assert added.structured_content == {"total": 4}
        plan = await mcp.call_tool("counter_add", {"counter_id": "c1"}, meta={"aima": {"dry_run": True}})
        assert plan.structured_content["events"][0]["type"] == "counter.added"
        (content,) = (await mcp.read_resource("asms://counter/c1")).contents
        assert json.loads(content.text) == {"total": 4}
        for unit, data in (("counter.get", {"counter_id": "none"}), ("gateway.create_key", {"name": "me"})):
            error = error_of(await mcp.call_tool(unit, data))
            assert error == await found.error_over_http(unit, data)
        assert len((await mcp.list_prompts()).prompts) == 5


@ERAS
async def test_progress_and_cancellation_reach_the_unit_and_come_back(tmp_path: Path, mode: str) -> None:
    async with doors(tmp_path, COUNTER) as found, agent(found, mode) as mcp:
        told = asyncio.Event()

        async def progress(*_: Any) -> None:
            told.set()

        call = asyncio.create_task(mcp.call_tool("counter_hum", {"times": 100_000}, progress_callback=progress))
        await asyncio.wait_for(told.wait(), 20)
        call.cancel()
        world = tmp_path / "counter" / "world"
        await until(lambda: "hum cancelled" in world.read_text())


async def test_an_agent_that_goes_in_the_middle_of_a_call_ends_it(tmp_path: Path) -> None:
    world = tmp_path / "counter" / "world"
    async with doors(tmp_path, COUNTER) as found:
        async with agent(found, MODERN) as mcp:
            call = asyncio.create_task(mcp.call_tool("counter_hum", {"times": 100_000}))
            await until(lambda: world.exists() and "hum began" in world.read_text())
        await until(lambda: "hum cancelled" in world.read_text())
        with contextlib.suppress(Exception):
            await call


async def test_a_domain_that_comes_is_told_of(tmp_path: Path) -> None:
    seen, heard = hearing()
    async with (
        doors(tmp_path, COUNTER) as found,
        agent(found, SESSIONS, heard=heard) as mcp,
        serving(TALLY, settings=settings_for(tmp_path, found.nats, TALLY)),
    ):
        await until(lambda: "notifications/tools/list_changed" in seen)
        await until(lambda: listed(mcp, ["tally"]))


async def test_a_watched_resource_is_told_of(tmp_path: Path) -> None:
    async with (
        doors(tmp_path, COUNTER) as found,
        agent(found, MODERN) as mcp,
        mcp.listen(resource_subscriptions=["asms://counter/c1"]) as news,
    ):
        await mcp.call_tool("counter_add", {"counter_id": "c1"})
        assert (await anext(aiter(news))).uri == "asms://counter/c1"


@ERAS
async def test_a_small_model_is_handed_what_the_words_say(tmp_path: Path, mode: str) -> None:
    async with doors(tmp_path, COUNTER) as found, agent(found, mode, "--read-only", "--only", "counter") as mcp:
        tools = {tool.name for tool in (await mcp.list_tools()).tools}
        assert tools == {"counter_get", "counter_log", "counter_read"}
        refusal = error_of(await mcp.call_tool("counter_add", {"counter_id": "c1"}))
        assert refusal["details"]["reason"] == "READ_ONLY"
        refusal = error_of(await mcp.call_tool("gateway_identify", {"key": "x"}))
        assert refusal["details"]["reason"] == "NOT_OFFERED"


async def test_a_key_in_the_environment_is_who_asks(tmp_path: Path) -> None:
    async with doors(tmp_path, COUNTER) as found:
        key = await found.key("operator", "gateway:high", "counter:low")
        async with agent(found, MODERN, AIMA_API_KEY=key) as mcp:
            keys = (await mcp.call_tool("gateway_list_keys")).structured_content["keys"]
            assert [each["name"] for each in keys] == ["operator"]
            refusal = error_of(await mcp.call_tool("counter_add", {"counter_id": "c1"}))
            assert refusal == await found.error_over_http("counter.add", {"counter_id": "c1"}, key)
            assert "counter_add" not in {tool.name for tool in (await mcp.list_tools()).tools}


async def test_a_key_that_is_none_is_refused_at_the_beginning(tmp_path: Path) -> None:
    async with doors(tmp_path) as found:
        code, out, errors = await run(tmp_path, found.nats, AIMA_API_KEY="aima_no_key")
        assert (code, out) == (1, "")
        assert "UNAUTHORIZED" in errors
        assert "aima_no_key" not in errors


async def test_without_a_bus_it_says_so_and_ends(tmp_path: Path, free_port: Any) -> None:
    code, out, errors = await run(tmp_path, f"nats://127.0.0.1:{free_port()}")
    assert (code, out) == (1, "")
    assert "no NATS server answers" in errors


async def test_stdout_is_the_protocols_alone_and_the_end_of_stdin_is_the_end(tmp_path: Path) -> None:
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    lines = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        "no JSON at all",
        {"jsonrpc": "2.0", "id": 2, "method": "tools/list"},
    ]
    said = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines).encode()
    async with doors(tmp_path, COUNTER) as found:
        code, out, errors = await run(tmp_path, found.nats, "--only", "counter,nothing", said=said)
        replies = [json.loads(line) for line in out.splitlines()]
        assert {reply.get("id") for reply in replies} <= {None, 1, 2}
        assert replies[0]["result"]["serverInfo"]["name"] == "aima"
        assert code == 0
        assert "there is no domain nothing on the bus" in errors


async def test_ctrl_c_ends_it_though_stdin_stays_open(tmp_path: Path) -> None:
    pipe = asyncio.subprocess.PIPE
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    asked = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
    async with doors(tmp_path, COUNTER) as found:
        env = environ(tmp_path, found.nats)
        process = await asyncio.create_subprocess_exec(sys.executable, *COMMAND, env=env, stdin=pipe, stdout=pipe)
        assert process.stdin
        assert process.stdout
        process.stdin.write(f"{json.dumps(asked)}\n".encode())
        assert json.loads(await asyncio.wait_for(process.stdout.readline(), 30))["id"] == 1
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 10) == 130
