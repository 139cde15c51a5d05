"""`aima bus`: the users of the bus and their rights."""

from __future__ import annotations

import typer

from aima_core.bus.credentials import inbox, password_file
from aima_core.bus.nats_server import USERS
from aima_core.errors import Unavailable
from services.cli import domains
from services.cli.bus import users as users_of_bus
from services.cli.door import client_settings
from services.cli.shared_options import Config, Output
from services.cli.show.console import Format, dim, out
from services.cli.show.output import document
from services.cli.show.tables import rows

app = typer.Typer(no_args_is_help=True)


@app.callback()
def bus() -> None:
    """Manage the users of the bus and their rights."""


@app.command()
def users(output: Output = Format.TABLE, config: Config = None) -> None:
    """Write the rights of all users for nats-server. Write a password file for each user that has none."""
    data = client_settings.read(config).data
    try:
        rights = users_of_bus.write(data, {name: domains.load(name) for name in domains.names()})
    except OSError as error:
        raise Unavailable(
            f"cannot write {error.filename}: {error.strerror}", reason="NOT_WRITABLE", file=str(error.filename)
        ) from error
    items = [
        {
            "user": name,
            "password_file": str(password_file(data, name)),
            "inbox": f"{inbox(name)}.>",
            "about": of_user.about,
            "publish": list(of_user.publish),
            "denied": list(of_user.denied),
            "subscribe": list(of_user.subscribe),
        }
        for name, of_user in rights.items()
    ]
    if output is not Format.TABLE:
        document({"configuration": str(data / "nats" / USERS), "users": items}, output)
        return
    rows(items, ("user", "password_file", "inbox", "about"))
    out.print(
        dim(f"add to nats-server's configuration: include {data / 'nats' / USERS}; -o json shows each user's rights")
    )
