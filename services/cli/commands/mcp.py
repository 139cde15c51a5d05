"""`aima mcp`: the Model Context Protocol on standard input and output, for an agent that starts it as its tool."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated

import typer

from aima_core import structured_logs
from aima_core.bus.client import Client
from aima_core.bus.directory import Directory
from aima_core.call import token
from aima_core.errors import AimaError
from services.cli.door import bus_door
from services.cli.shared_options import Config
from services.cli.show.console import Format, err
from services.cli.show.output import failure
from services.gateway.entrance.access import NOBODY, Policy, Principal
from services.gateway.entrance.dispatch import Caller, Dispatcher

if TYPE_CHECKING:
    from services.gateway.mcp.api import McpServer
    from services.gateway.mcp.tools import Mode

_IDENTIFY = 5.0  # seconds


def mcp(
    read_only: Annotated[bool, typer.Option("--read-only", help="Hand out only what changes nothing.")] = False,
    only: Annotated[
        str, typer.Option("--only", metavar="DOMAINS", help="Hand out only what belongs to these: service,model.")
    ] = "",
    config: Config = None,
) -> None:
    """Serve the Model Context Protocol on stdin and stdout. An API key comes from AIMA_API_KEY."""
    from services.gateway.mcp.tools import Mode  # the SDK takes half a second that no other command should

    structured_logs.set_up("mcp", "warning")
    if url := os.environ.get("AIMA_URL"):
        err.print(f"[yellow]this asks the bus; for the gateway a client connects to {url.rstrip('/')}/mcp itself[/]")
    mode = Mode(read_only, tuple(word.strip() for word in only.split(",") if word.strip()))
    try:
        asyncio.run(_serve(mode, config))
    except AimaError as error:  # stdout is the protocol's, whatever format was asked for
        failure(error, Format.TABLE)
        raise typer.Exit(1) from None


async def _serve(mode: Mode, config: Config) -> None:
    from mcp.server.stdio import stdio_server

    # a thread waits for standard input, and nothing but the end of that would wake it: Ctrl-C ends the process at once
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, os._exit, 130)
    async with bus_door.bus(config) as client, _server(client, mode) as served, stdio_server() as (reading, writing):
        await served.server.run(reading, writing, served.server.create_initialization_options())


@contextlib.asynccontextmanager
async def _server(client: Client, mode: Mode) -> AsyncIterator[McpServer]:
    """Give a server that asks on behalf of whoever the key belongs to, and keeps up with what is on the bus."""
    from services.gateway.mcp.api import McpClient, McpServer
    from services.gateway.rest.resources import Watching

    who = await _principal(client)
    directory, watching = Directory(client.nc), Watching(client.nc)
    await directory.open()
    for domain in set(mode.only) - set(directory.domains):
        err.print(f"[yellow]no domain {domain} is on the bus now; there are {', '.join(directory.domains)}[/]")
    # as at a door of this machine alone: commands need no key, what is of high risk always does
    served = McpServer(
        Dispatcher(client, directory, Policy(required=False)),
        watching.changes,
        lambda _: McpClient(Caller(who, "local", token(8)), mode),
    )
    keeping = [asyncio.create_task(work()) for work in (directory.run, watching.run, served.news.run)]
    try:
        yield served
    finally:
        for task in keeping:
            task.cancel()
        await asyncio.gather(*keeping, return_exceptions=True)
        await served.news.close()
        await directory.close()


async def _principal(client: Client) -> Principal:
    """Return who the key in the environment belongs to; raise Unauthorized for one that is not good."""
    if not (key := os.environ.get("AIMA_API_KEY", "")):
        return NOBODY
    found = (await client.ask("gateway.identify", {"key": key}, timeout=_IDENTIFY)).data
    return Principal(found["name"], found["key_id"], tuple(found["scopes"]), tuple(found["models"]))
