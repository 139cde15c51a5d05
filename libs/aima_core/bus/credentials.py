"""The user as which a process connects to a bus with users: name, password, and an inbox that only this user may read.

The users and their rights are not defined here: `aima bus users` writes them for the server.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from aima_core.errors import ValidationFailed
from aima_core.settings import Settings

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


def inbox(user: str) -> str:
    """Return the prefix of a user's inboxes; with `*` a pattern for all users."""
    return f"{_INBOX}.{user}"


def password_file(data: Path, user: str) -> Path:
    """Return the file in which `aima bus users` stores a user's password."""
    return data / "nats" / "users" / user


def bus_user(settings: Settings, default: str) -> BusUser | None:
    """Return the user to connect as; None to connect without one.

    The password comes from the settings' password file, else from the URL, else from the user's file in the data
    folder; without any of these there is no user. Raises ValidationFailed if the settings' file cannot be read.
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
