"""`aima run`: one domain in the foreground, on a bus that already runs."""

from __future__ import annotations

from typing import Annotated

import typer

from aima_core.errors import NotFound, Unavailable
from aima_core.process.launch import main as serve
from services.cli import domains
from services.cli.door import bus_door, client_settings
from services.cli.shared_options import Addr, Config, listen_at


def run(
    domain: Annotated[str, typer.Argument(help="Name of a domain.")],
    addr: Addr = "",
    config: Config = None,
) -> None:
    """Run one domain on a bus that already runs: for a container, systemd or a debugger."""
    listen_at(addr)
    known = domains.names()
    if domain not in known:
        raise NotFound(
            f"there is no domain {domain}; known domains: {', '.join(known)}", reason="NO_DOMAIN", known=known
        )
    settings = client_settings.read(config)
    if not bus_door.has_bus(settings):  # a server on the default port may belong to another program
        raise Unavailable(
            f"no bus is running for {settings.data}; set nats.url, or start one with `aima up`", reason="NOT_UP"
        )
    serve(domains.load(domain), config=config)
