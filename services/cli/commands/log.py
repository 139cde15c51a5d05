"""`aima log`: proving that a log is whole, and that everything else can be made again from it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from aima_core.errors import ExecutionFailed, NotFound
from aima_core.process.writer import Writer
from aima_core.store.log import Log
from aima_core.store.records import Codec
from services.cli import domains
from services.cli.door import bus_door
from services.cli.shared_options import Config, Output
from services.cli.show.console import Format
from services.cli.show.output import document

app = typer.Typer(help="Prove that a domain's log is whole; make its read tables anew.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Name of a domain; it must not be running.")]


@app.command()
def verify(domain: Name, output: Output = Format.TABLE, config: Config = None) -> None:
    """Walk the chain of hashes; fail at the first row that was changed, removed or put in."""
    broken, events = asyncio.run(_verify(domain, config))
    if broken is not None:
        raise ExecutionFailed(
            f"the log of {domain} does not hold together at position {broken}", reason="LOG_TAMPERED", position=broken
        )
    document({"domain": domain, "events": events, "intact": True}, output)


@app.command()
def rebuild(domain: Name, output: Output = Format.TABLE, config: Config = None) -> None:
    """Throw away the read tables and the snapshot, and make them again from the log."""
    document({"domain": domain, "events": asyncio.run(_rebuild(domain, config))}, output)


async def _verify(name: str, config: Any) -> tuple[int | None, int]:
    log = await _open(name, config)
    try:
        rows = await log.file.read(lambda c: c.execute("SELECT count(*) FROM events").fetchone())
        return await log.verify(), int(rows[0])
    finally:
        await log.close()


async def _rebuild(name: str, config: Any) -> int:
    log = await _open(name, config)
    try:
        return await Writer(domains.load(name), log, bus_door.settings(config).node).rebuild()
    finally:
        await log.close()


async def _open(name: str, config: Any) -> Log:
    if name not in domains.names():
        known = domains.names()
        raise NotFound(f"there is no domain {name}; there are {', '.join(known)}", reason="NO_DOMAIN", known=known)
    domain = domains.load(name)
    return await Log.open(bus_door.settings(config).data / name, name, Codec(domain.events, domain.upcasters))
