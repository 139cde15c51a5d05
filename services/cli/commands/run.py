"""`aima run`: one domain, on the bus that there is."""

from __future__ import annotations

from typing import Annotated

import typer

from aima_core.errors import NotFound, Unavailable
from aima_core.process.launch import main as serve
from services.cli import domains
from services.cli.door import bus_door
from services.cli.shared_options import Addr, Config, open_at


def run(
    domain: Annotated[str, typer.Argument(help="Name of a domain.")],
    addr: Addr = "",
    config: Config = None,
) -> None:
    """Run one domain on the bus that there is, for a container, systemd or a debugger."""
    open_at(addr)
    known = domains.names()
    if domain not in known:
        raise NotFound(f"there is no domain {domain}; there are {', '.join(known)}", reason="NO_DOMAIN", known=known)
    settings = bus_door.settings(config)
    if not bus_door.has_bus(settings):  # whatever else listens on the usual port may be somebody else's
        raise Unavailable(
            f"there is no bus to be on: nats.url names one, or `aima up` runs one on {settings.data}", reason="NOT_UP"
        )
    serve(domains.load(domain), config=config)
