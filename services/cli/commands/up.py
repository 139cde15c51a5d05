"""`aima up`: everything on this machine."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from aima_core.bus import nats_server
from aima_core.bus.credentials import password_file
from aima_core.bus.endpoints import describe
from aima_core.domain import Domain
from aima_core.errors import Unavailable
from aima_core.process.launch import main as serve
from aima_core.settings import chosen_url, load
from services.cli import domains
from services.cli.bus import users as users_of_bus
from services.cli.shared_options import Addr, Config, open_at
from services.cli.show.console import err
from services.cli.supervisor.folder_lock import claim
from services.cli.supervisor.restarts import ProcessState
from services.cli.supervisor.supervisor import Supervisor

_COLOURS = {"ready": "green", "starting": "yellow", "restarting": "red", "stopping": "yellow", "stopped": "dim"}


def up(
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but what goes wrong.")] = False,
    addr: Addr = "",
    config: Config = None,
) -> None:
    """Run everything on this machine: the bus, every domain and the doors. Ctrl-C ends it in order."""
    open_at(addr)
    gc.disable()  # a collection during the imports leaves holes that every child would fill and so copy
    # Everything is imported here once and shared by the processes that are forked; no thread, loop or file before.
    loaded = {name: domains.load(name) for name in domains.names()}
    settings = load({name: domain.settings for name, domain in loaded.items()}, path=config)
    foreign = chosen_url(path=config)
    try:
        with claim(settings.data) as claimed:
            if settings.nats.users and not foreign:
                users_of_bus.write(settings.data, loaded)
            bus = foreign or nats_server.start(
                settings.data / "nats",
                settings.nats.port or None,
                settings.data / "nats" / "server.log",
                die_with_parent=True,
                users=settings.nats.users,
            )
            url = bus if isinstance(bus, str) else bus.url
            os.environ["AIMA_NATS_URL"] = url
            data = settings.data if settings.nats.users else None
            runs = {name: partial(_child, domain, config, data) for name, domain in loaded.items()}
            for domain in loaded.values():
                for unit in domain.units:
                    describe(unit)  # schemas are made once and shared by all
            gc.collect()
            gc.freeze()  # what lives now lives for ever; no collection touches, and so copies, its pages
            code = Supervisor(claimed, bus, runs, _teller(url, settings.data, quiet)).run()
    except OSError as error:
        raise Unavailable(
            f"cannot write {settings.data}: {error.strerror}", reason="NOT_WRITABLE", file=str(settings.data)
        ) from error
    raise typer.Exit(code)


def _child(domain: Domain[Any], config: Path | None, data: Path | None, ready: int, lifeline: int) -> None:
    gc.enable()
    if data:  # a bus with users: each process is the one of its domain, whoever we may be
        os.environ["AIMA_NATS_USER"] = domain.name
        os.environ["AIMA_NATS_PASSWORD_FILE"] = str(password_file(data, domain.name))
    serve(domain, config=config, ready=ready, lifeline=lifeline)


def _teller(url: str, data: Path, quiet: bool) -> Callable[[Sequence[ProcessState]], None]:
    """Return what tells a person, a line for each change and one when all is well; `quiet`: only what goes wrong."""
    told: dict[str, str] = {}
    said_ready = False

    def tell(states: Sequence[ProcessState]) -> None:
        nonlocal said_ready
        for state in states:
            if told.get(state.name) == str(state) or (state.state in ("starting", "ready") and state.restarts == 0):
                told[state.name] = str(state)
                continue
            told[state.name] = str(state)
            if quiet and state.state != "restarting":
                continue
            why = f" ({escape(state.why)})" if state.why and state.state != "starting" else ""  # said as it ended
            err.print(f"{state.name:<10} [{_COLOURS.get(state.state, '')}]{state}[/]{why}", highlight=False)
        if not (said_ready or quiet) and all(state.state == "ready" for state in states):
            said_ready = True
            names = ", ".join(state.name for state in states)
            err.print(f"[green]ready[/] at [bold]{url}[/]: {names}", highlight=False)
            with suppress(OSError):
                doors = (data / "gateway.url").read_text().strip()
                err.print(f"doors at [bold]{doors}[/]: OpenAI at /v1, MCP at /mcp, all of it at /docs", highlight=False)
            err.print(
                "[dim]in another terminal: aima status, aima units, aima events -f. Ctrl-C ends all but engines.[/]"
            )

    return tell
