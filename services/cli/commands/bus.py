"""`aima bus`: who may do what on the bus."""

from __future__ import annotations

import typer

from aima_core.bus.credentials import inbox, password_file
from aima_core.bus.nats_server import USERS
from aima_core.errors import Unavailable
from services.cli import domains
from services.cli.bus import users as users_of_bus
from services.cli.door import bus_door
from services.cli.shared_options import Config, Output
from services.cli.show.console import Format, out
from services.cli.show.output import document
from services.cli.show.tables import rows

app = typer.Typer(no_args_is_help=True)


@app.callback()
def bus() -> None:
    """Who may do what on the bus."""


@app.command()
def users(output: Output = Format.TABLE, config: Config = None) -> None:
    """Write the users for a nats-server: what each may, and a password for each that has none yet."""
    data = bus_door.settings(config).data
    try:
        found = users_of_bus.write(data, {name: domains.load(name) for name in domains.names()})
    except OSError as error:
        raise Unavailable(
            f"cannot write {error.filename}: {error.strerror}", reason="NOT_WRITABLE", file=str(error.filename)
        ) from error
    items = [
        {
            "user": name,
            "password_file": str(password_file(data, name)),
            "inbox": f"{inbox(name)}.>",
            "about": right.about,
            "publish": list(right.publish),
            "denied": list(right.denied),
            "subscribe": list(right.subscribe),
        }
        for name, right in found.items()
    ]
    if output is not Format.TABLE:
        document({"configuration": str(data / "nats" / USERS), "users": items}, output)
        return
    rows(items, ("user", "password_file", "inbox", "about"))
    out.print(f"[dim]for nats-server: include {data / 'nats' / USERS}; -o json shows what each may[/]", highlight=False)
