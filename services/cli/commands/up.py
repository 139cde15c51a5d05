"""`aima up`: the bus and every domain on this machine, under one supervisor."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from aima_core.bus import nats_server
from aima_core.bus.credentials import password_file
from aima_core.bus.endpoints import describe
from aima_core.domain import Domain
from aima_core.errors import Unavailable
from aima_core.process.launch import main as serve
from aima_core.settings import chosen_url, load
from services.cli import domains
from services.cli.bus import users as users_of_bus
from services.cli.shared_options import Addr, Config, listen_at
from services.cli.show.console import bold, dim, err, green, styled
from services.cli.supervisor.folder_lock import claim
from services.cli.supervisor.restarts import ProcessState
from services.cli.supervisor.supervisor import Supervisor

_COLOURS = {"ready": "green", "starting": "yellow", "restarting": "red", "stopping": "yellow", "stopped": "dim"}


def up(
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print failures only.")] = False,
    addr: Addr = "",
    config: Config = None,
) -> None:
    """Run the bus, every domain and the gateway on this machine. Ctrl-C stops them in order; engines keep running."""
    listen_at(addr)
    gc.disable()  # a collection frees memory in shared pages; each child would reuse, and so copy, these pages
    # The children share all imported modules. No thread, event loop or file may be open before the children are forked.
    loaded = {name: domains.load(name) for name in domains.names()}
    settings = load({name: domain.settings for name, domain in loaded.items()}, path=config)
    external_url = chosen_url(path=config)
    try:
        with claim(settings.data) as lock:
            if settings.nats.users and not external_url:
                users_of_bus.write(settings.data, loaded)
            bus = external_url or nats_server.start(
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
                    describe(unit)  # build the schemas once; the children share them
            gc.collect()
            gc.freeze()  # exempt all live objects from collections, which would copy the shared pages
            code = Supervisor(lock, bus, runs, _reporter(url, settings.data, quiet)).run()
    except OSError as error:
        raise Unavailable(
            f"cannot write {settings.data}: {error.strerror}", reason="NOT_WRITABLE", file=str(settings.data)
        ) from error
    raise typer.Exit(code)


def _child(domain: Domain[Any], config: Path | None, data: Path | None, ready: int, lifeline: int) -> None:
    gc.enable()
    if data:  # the bus has users: each process connects as the user of its domain
        os.environ["AIMA_NATS_USER"] = domain.name
        os.environ["AIMA_NATS_PASSWORD_FILE"] = str(password_file(data, domain.name))
    serve(domain, config=config, ready=ready, lifeline=lifeline)


def _reporter(url: str, data: Path, quiet: bool) -> Callable[[Sequence[ProcessState]], None]:
    """Return a function that prints each change of a process's state, and "ready" once all processes are ready."""
    printed: dict[str, str] = {}
    reported_ready = False

    def report(states: Sequence[ProcessState]) -> None:
        nonlocal reported_ready
        for state in states:
            if printed.get(state.name) == str(state) or (state.state in ("starting", "ready") and state.restarts == 0):
                printed[state.name] = str(state)
                continue
            printed[state.name] = str(state)
            if quiet and state.state != "restarting":
                continue
            why = f" ({state.why})" if state.why and state.state != "starting" else ""  # printed before the start
            err.print(f"{state.name:<10} ", styled(_COLOURS.get(state.state, ""), state), why)
        if not (reported_ready or quiet) and all(state.state == "ready" for state in states):
            reported_ready = True
            names = ", ".join(state.name for state in states)
            err.print(green("ready"), " at ", bold(url), f": {names}")
            with suppress(OSError):
                gateway_url = (data / "gateway.url").read_text().strip()
                err.print("gateway at ", bold(gateway_url), ": OpenAI API at /v1, MCP at /mcp, reference at /docs")
            err.print(
                dim("in another terminal: aima status, aima units, aima events -f; Ctrl-C stops all except engines")
            )

    return report
