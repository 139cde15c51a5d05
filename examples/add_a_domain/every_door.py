"""Ask the domain of note.py at every door: the bus, HTTP, MCP and the command line.

    python examples/add_a_domain/every_door.py

It needs the `nats-py` and `mcp` packages; AIMA itself brings both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
from typing import Any
from urllib.request import Request, urlopen

import nats
from mcp import Client


async def over_the_bus(bus: str) -> Any:
    """Leave a note."""
    nc = await nats.connect(bus, allow_reconnect=False)
    try:
        asked = {"service_id": "svc-chat", "text": "Maintenance at noon."}
        reply = await nc.request("aima.note.create", json.dumps(asked).encode(), timeout=10)
        return json.loads(reply.data)["data"]
    finally:
        await nc.close()


def over_http(url: str, note_id: str) -> Any:
    """Get it by the route that the rule gives to `note.get`."""
    with urlopen(f"{url}/api/v2/notes/{note_id}") as reply:
        return json.loads(reply.read())["data"]


async def over_mcp(url: str) -> Any:
    """List the notes with the tool that the unit has become."""
    async with Client(f"{url}/mcp?only=note") as aima:
        print("  tools:", ", ".join(tool.name for tool in (await aima.list_tools()).tools))
        return (await aima.call_tool("note_list", {"service_id": "svc-chat"})).structured_content


def at_the_command_line(note_id: str) -> str:
    """Type `aima note delete <id>`."""
    typed = [sys.executable, "-m", "services.cli.entry", "note", "delete", note_id, "-o", "json"]
    return subprocess.run(typed, capture_output=True, text=True, check=True).stdout.strip()


def described(url: str) -> list[str]:
    """Return the routes of the domain that stand in the OpenAPI document."""
    with urlopen(Request(f"{url}/openapi.json")) as reply:
        return [path for path in json.loads(reply.read())["paths"] if "/note" in path]


async def main() -> None:
    """Ask at each door in turn."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    options.add_argument("--bus", default=os.environ.get("AIMA_NATS_URL", "nats://127.0.0.1:4222"))
    options.add_argument("--url", default=os.environ.get("AIMA_URL", "http://127.0.0.1:9090"))
    given = options.parse_args()

    created = await over_the_bus(given.bus)
    print("bus: created", created["note_id"])
    print("HTTP:", await asyncio.to_thread(over_http, given.url, created["note_id"]))
    listed = await over_mcp(given.url)
    print("MCP:", listed["total"], "note")
    print("command line:", await asyncio.to_thread(at_the_command_line, created["note_id"]))
    print("OpenAPI:", ", ".join(await asyncio.to_thread(described, given.url)))


if __name__ == "__main__":
    asyncio.run(main())
