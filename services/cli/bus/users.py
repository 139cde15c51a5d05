"""Writes the users of the bus into nats-server's configuration: one user for each domain and each kind of caller.

The configuration contains only the hash of each password. The password itself is in a file that only the current
account can read.
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

# A password has 256 random bits, so nobody can guess it. A higher cost would only slow every connection.
_COST = 4


def write(data: Path, domains: Mapping[str, Domain[Any]]) -> dict[str, Rights]:
    """Write `users.conf`, and a password file for each user without one; return the rights by user.

    Raises OSError if the data folder is not writable.
    """
    by_user = rights(domains)
    password_file(data, "").mkdir(parents=True, exist_ok=True, mode=0o700)
    hashes = {name: _hash(_password(password_file(data, name))) for name in by_user}
    _private(data / "nats" / USERS, configuration(by_user, hashes))
    return by_user


def configuration(by_user: Mapping[str, Rights], hashes: Mapping[str, str]) -> str:
    """Return the text of nats-server's configuration. The users are in JSON, which nats-server accepts."""
    users = [
        {
            "user": name,
            "password": hashes[name],
            "permissions": {
                "publish": {"allow": of_user.publish, "deny": of_user.denied},
                "subscribe": {"allow": of_user.subscribe},
            },
        }
        for name, of_user in by_user.items()
    ]
    return f"# Written by `aima bus users`; do not edit.\nauthorization {json.dumps({'users': users}, indent=1)}\n"


def _password(file: Path) -> str:
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        password = secrets.token_urlsafe(32)
        _private(file, f"{password}\n")
        return password


def _hash(password: str) -> str:
    salt = bcrypt.gensalt(_COST, prefix=b"2a")  # the variant that nats-server accepts
    return bcrypt.hashpw(password.encode(), salt).decode()


def _private(file: Path, text: str) -> None:
    """Write a file atomically. Only the current account can read the file."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out_:
        out_.write(text)
    temporary.replace(file)
