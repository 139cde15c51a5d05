"""`aima bus`: a user of the bus for each domain and each kind of caller, as nats-server's configuration.

The server gets hashes; each password lies alone in a file that only its owner's account can read.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bcrypt
import typer

from aima_core.bus.credentials import inbox, password_file
from aima_core.bus.nats_server import USERS
from aima_core.domain import Domain
from aima_core.errors import Unavailable
from services.cli import domains
from services.cli.bus.rights import Rights, rights
from services.cli.door import opening
from services.cli.shared_options import Config, Output
from services.cli.show.output import Format, document, out
from services.cli.show.tables import rows

app = typer.Typer(no_args_is_help=True)

# A password here is 256 random bits: no cost makes guessing it harder, but every connection would pay for it.
_COST = 4


@app.callback()
def bus() -> None:
    """Who may do what on the bus."""


@app.command()
def users(output: Output = Format.TABLE, config: Config = None) -> None:
    """Write the users for a nats-server: what each may, and a password for each that has none yet."""
    data = opening.settings(config).data
    try:
        found = write(data, {name: domains.load(name) for name in domains.names()})
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


def write(data: Path, known: Mapping[str, Domain[Any]]) -> dict[str, Rights]:
    """Write `users.conf` for these domains, and a password for each user without one; return the users' rights.

    Raises OSError when the data folder cannot be written.
    """
    found = rights(known)
    password_file(data, "").mkdir(parents=True, exist_ok=True, mode=0o700)
    hashes = {name: _hash(_password(password_file(data, name))) for name in found}
    _private(data / "nats" / USERS, configuration(found, hashes))
    return found


def configuration(found: Mapping[str, Rights], hashes: Mapping[str, str]) -> str:
    """Return the text for nats-server, whose syntax takes JSON."""
    listed = [
        {
            "user": name,
            "password": hashes[name],
            "permissions": {
                "publish": {"allow": right.publish, "deny": right.denied},
                "subscribe": {"allow": right.subscribe},
            },
        }
        for name, right in found.items()
    ]
    return f"# Written by `aima bus users`; do not edit.\nauthorization {json.dumps({'users': listed}, indent=1)}\n"


def _password(file: Path) -> str:
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        password = secrets.token_urlsafe(32)
        _private(file, f"{password}\n")
        return password


def _hash(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(_COST, prefix=b"2a")).decode()  # what nats-server knows


def _private(file: Path, text: str) -> None:
    """Replace a file in one step by one that only our own account can read."""
    new = file.with_name(f"{file.name}.{os.getpid()}")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out_:
        out_.write(text)
    new.replace(file)
