"""`aima mcp`: the Model Context Protocol on standard input and output, for agents that start MCP servers themselves."""

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
from services.cli.show.console import Format, err, yellow
from services.cli.show.output import failure
from services.gateway.entrance.access import NOBODY, Policy, Principal
from services.gateway.entrance.dispatch import Caller, Dispatcher

if TYPE_CHECKING:
    from services.gateway.mcp.api import McpServer
    from services.gateway.mcp.tools import Mode

_IDENTIFY = 5.0  # seconds for the gateway to identify the key


def mcp(
    read_only: Annotated[bool, typer.Option("--read-only", help="Offer only queries.")] = False,
    only: Annotated[
        str, typer.Option("--only", metavar="DOMAINS", help="Offer only the units of these domains: service,model.")
    ] = "",
    config: Config = None,
) -> None:
    """Serve the Model Context Protocol on stdin and stdout. AIMA_API_KEY sets the API key."""
    from services.gateway.mcp.tools import Mode  # the SDK takes half a second to import

    structured_logs.set_up("mcp", "warning")
    if url := os.environ.get("AIMA_URL"):
        gateway = f"to use the gateway, connect the MCP client to {url.rstrip('/')}/mcp"
        err.print(yellow(f"AIMA_URL is ignored: this command uses the bus; {gateway}"))
    mode = Mode(read_only, tuple(word.strip() for word in only.split(",") if word.strip()))
    try:
        asyncio.run(_serve(mode, config))
    except AimaError as error:  # stdout belongs to the protocol, so the error goes to stderr
        failure(error, Format.TABLE)
        raise typer.Exit(1) from None


async def _serve(mode: Mode, config: Config) -> None:
    from mcp.server.stdio import stdio_server

    # Ctrl-C cannot interrupt the thread that reads stdin, so the handler ends the process at once
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, os._exit, 130)
    async with bus_door.bus(config) as client, _server(client, mode) as served, stdio_server() as (reading, writing):
        await served.server.run(reading, writing, served.server.create_initialization_options())


@contextlib.asynccontextmanager
async def _server(client: Client, mode: Mode) -> AsyncIterator[McpServer]:
    """Yield a server that acts for the principal of the key and follows the units on the bus."""
    from services.gateway.mcp.api import McpClient, McpServer
    from services.gateway.rest.resources import Watching

    principal = await _principal(client)
    directory, watching = Directory(client.nc), Watching(client.nc)
    await directory.open()
    for domain in set(mode.only) - set(directory.domains):
        known = ", ".join(directory.domains)
        err.print(yellow(f"there is no domain {domain} on the bus; known domains: {known}"))
    # only this machine reaches this server, so only units of high risk need a key
    served = McpServer(
        Dispatcher(client, directory, Policy(required=False)),
        watching.changes,
        lambda _: McpClient(Caller(principal, "local", token(8)), mode),
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
    """Return the principal of the key in AIMA_API_KEY; NOBODY without a key. Raises Unauthorized for an invalid key."""
    if not (key := os.environ.get("AIMA_API_KEY", "")):
        return NOBODY
    owner = (await client.ask("gateway.identify", {"key": key}, timeout=_IDENTIFY)).data
    return Principal(owner["name"], owner["key_id"], tuple(owner["scopes"]), tuple(owner["models"]))
