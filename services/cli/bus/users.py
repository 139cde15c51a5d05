"""The users of the bus as nats-server's configuration: one for each domain and each kind of caller.

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

from aima_core.bus.credentials import password_file
from aima_core.bus.nats_server import USERS
from aima_core.domain import Domain
from services.cli.bus.rights import Rights, rights

# A password here is 256 random bits: no cost makes guessing it harder, but every connection would pay for it.
_COST = 4


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
