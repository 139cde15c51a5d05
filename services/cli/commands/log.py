"""`aima log`: verify a domain's log, and rebuild the domain's read tables and snapshot from the log."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from aima_core.errors import ExecutionFailed, NotFound
from aima_core.process.writer import Writer
from aima_core.store.log import Log
from aima_core.store.records import Codec
from services.cli import domains
from services.cli.door import client_settings
from services.cli.shared_options import Config, Output
from services.cli.show.console import Format
from services.cli.show.output import document

app = typer.Typer(help="Verify a domain's log, or rebuild the domain's read tables from the log.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Name of a domain. Its process must be stopped.")]


@app.command()
def verify(domain: Name, output: Output = Format.TABLE, config: Config = None) -> None:
    """Check the hash chain of the log; fail at the first row that was changed, removed or inserted."""
    broken, events = asyncio.run(_verify(domain, config))
    if broken is not None:
        raise ExecutionFailed(
            f"the hash chain of the {domain} log breaks at position {broken}: the row was changed, removed or inserted",
            reason="LOG_TAMPERED",
            position=broken,
        )
    document({"domain": domain, "events": events, "intact": True}, output)


@app.command()
def rebuild(domain: Name, output: Output = Format.TABLE, config: Config = None) -> None:
    """Delete the read tables and the snapshot and rebuild them from the log."""
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
        return await Writer(domains.load(name), log, client_settings.read(config).node).rebuild()
    finally:
        await log.close()


async def _open(name: str, config: Any) -> Log:
    if name not in domains.names():
        known = domains.names()
        raise NotFound(f"there is no domain {name}; known domains: {', '.join(known)}", reason="NO_DOMAIN", known=known)
    domain = domains.load(name)
    return await Log.open(client_settings.read(config).data / name, name, Codec(domain.events, domain.upcasters))
