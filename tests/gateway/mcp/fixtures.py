"""What the tests of the Model Context Protocol share: a gateway in this process, and the SDK's own client."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from mcp import Client as McpClient
from mcp.client.streamable_http import streamable_http_client

from aima_core.bus import nats_server
from aima_core.bus.client import Client
from aima_core.domain import Domain
from aima_core.testing import serving, settings_for, until
from services.gateway.domain import GATEWAY

MODERN, SESSIONS = "2026-07-28", "legacy"  # the two ways of the protocol: each request by itself, or in a session


@dataclass
class Doors:
    """A gateway, and how its tests reach it. `nats` is the bus's URL."""

    url: str
    nats: str
    bus: Client
    folder: Path

    @contextlib.asynccontextmanager
    async def mcp(self, mode: str = "auto", *, key: str = "", query: str = "", heard: Any = None) -> AsyncIterator[Any]:
        """Connect the SDK's client; `heard` takes what the server says by itself."""
        async with httpx2.AsyncClient(headers=bearer(key), timeout=30) as http:
            transport = streamable_http_client(f"{self.url}/mcp{query}", http_client=http)
            async with McpClient(transport, mode=mode, message_handler=heard) as client:
                yield client

    async def error_over_http(self, unit: str, data: dict[str, Any], key: str = "") -> Any:
        """Return the body of the refusal that a unit's input meets at `/api/v2/execute`."""
        async with httpx2.AsyncClient(headers=bearer(key)) as http:
            reply = await http.post(f"{self.url}/api/v2/execute", json={"unit": unit, "input": data})
        return reply.json()["error"]

    async def key(self, name: str, *scopes: str, **other: Any) -> str:
        """Make a key."""
        answer = await self.bus.ask("gateway.create_key", {"name": name, "scopes": scopes, **other}, timeout=10)
        return str(answer.data["key"])


@contextlib.asynccontextmanager
async def doors(folder: Path, *domains: Domain[Any], **environ: str) -> AsyncIterator[Doors]:
    """Serve a gateway and these domains on a bus of their own."""
    port = nats_server.free_port()
    server = nats_server.start(folder / "nats", port, folder / "nats.log", die_with_parent=False)
    environ = {"AIMA_GATEWAY_ADDR": "127.0.0.1:0"} | environ
    settings = settings_for(folder, server.url, GATEWAY, *domains, environ=environ)
    try:
        async with serving(*domains, GATEWAY, settings=settings) as client:
            url = (folder / "gateway.url").read_text().strip()
            found = Doors(url, server.url, client, folder)
            async with found.mcp() as mcp:
                await until(lambda: listed(mcp, [domain.name for domain in domains]))
            yield found
    finally:
        server.stop()


async def listed(mcp: Any, domains: list[str]) -> bool:
    """Whether there are tools of all these domains."""
    tools = (await mcp.list_tools()).tools
    return all(any(tool.name.startswith(f"{domain}_") for tool in tools) for domain in domains)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def error_of(result: Any) -> Any:
    """Return the body of a tool's refusal."""
    assert result.is_error, result
    assert result.structured_content is None
    return json.loads(result.content[0].text)


Heard = Callable[[Any], Awaitable[None]]


def hearing() -> tuple[list[str], Heard]:
    """Return a list of the methods of notices, and what fills it."""
    methods: list[str] = []

    async def heard(message: Any) -> None:
        methods.append(message.method)

    return methods, heard
