"""Finds the user of the bus for a process: its name, its password, and an inbox that only this user may read.

This module does not define users and their rights: `aima bus users` writes them for the server.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from aima_core.errors import ValidationFailed

OPERATOR = "operator"  # the user of the command line
_INBOX = "_INBOX"


@dataclass(frozen=True)
class BusUser:
    """One user of the bus."""

    name: str
    password: str = field(repr=False)

    @property
    def inbox(self) -> str:
        """The prefix of the subjects on which this user receives replies."""
        return inbox(self.name)


class Nats(Protocol):
    """The settings of the section `nats` that determine the user of the bus."""

    @property
    def url(self) -> str: ...
    @property
    def user(self) -> str: ...
    @property
    def password_file(self) -> str: ...


class BusSettings(Protocol):
    """The settings that determine the user of the bus. A process has them, and so has a client (services/cli/door)."""

    @property
    def data(self) -> Path: ...
    @property
    def nats(self) -> Nats: ...


def inbox(user: str) -> str:
    """Return the prefix of a user's inboxes. The user `*` gives the pattern for all users."""
    return f"{_INBOX}.{user}"


def password_file(data: Path, user: str) -> Path:
    """Return the file in which `aima bus users` stores a user's password."""
    return data / "nats" / "users" / user


def bus_user(settings: BusSettings, default: str) -> BusUser | None:
    """Return the user of the bus for this process, or None to connect without a user.

    The password comes from the password file of the settings. Without this setting, it comes from the URL. Without a
    password in the URL, it comes from the user's file in the data folder. If that file is missing, returns None. Raises
    ValidationFailed if the password file of the settings cannot be read.
    """
    nats = settings.nats
    if nats.password_file:
        try:
            return BusUser(nats.user or default, Path(nats.password_file).expanduser().read_text().strip())
        except (OSError, UnicodeDecodeError) as error:
            raise ValidationFailed(
                f"nats.password_file: {nats.password_file} cannot be read: {error}",
                reason="BAD_CONFIG",
                key="nats.password_file",
            ) from error
    address = urlsplit(nats.url)
    if address.username and address.password:
        return BusUser(unquote(address.username), unquote(address.password))
    name = nats.user or default
    try:
        return BusUser(name, password_file(settings.data, name).read_text().strip())
    except OSError:
        return None
