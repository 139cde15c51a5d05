"""Who we are on a bus that asks: a name, a password, and an inbox that nobody else may read.

Which users there are and what each may do is no concern of this file; `aima bus users` writes that for the server.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from aima_core.errors import ValidationFailed
from aima_core.settings import Settings

OPERATOR = "operator"  # who the command line is
_INBOX = "_INBOX"


@dataclass(frozen=True)
class BusUser:
    """One user of the bus."""

    name: str
    password: str = field(repr=False)

    @property
    def inbox(self) -> str:
        """The prefix of the subjects on which this user is answered."""
        return inbox(self.name)


def inbox(user: str) -> str:
    """Return the prefix of a user's inboxes; `*` for anybody's."""
    return f"{_INBOX}.{user}"


def password_file(data: Path, user: str) -> Path:
    """Return where `aima bus users` keeps a user's password."""
    return data / "nats" / "users" / user


def bus_user(settings: Settings, default: str) -> BusUser | None:
    """Return who to be on the bus: whom the settings or the URL name, else `default` if its password can be read.

    None is nobody, which is right for a server that does not ask. Raises ValidationFailed for a password file that the
    settings name and that cannot be read.
    """
    chosen = settings.nats
    if chosen.password_file:
        try:
            return BusUser(chosen.user or default, Path(chosen.password_file).expanduser().read_text().strip())
        except (OSError, UnicodeDecodeError) as error:
            raise ValidationFailed(
                f"nats.password_file: {chosen.password_file} cannot be read: {error}",
                reason="BAD_CONFIG",
                key="nats.password_file",
            ) from error
    address = urlsplit(chosen.url)
    if address.username and address.password:
        return BusUser(unquote(address.username), unquote(address.password))
    name = chosen.user or default
    try:
        return BusUser(name, password_file(settings.data, name).read_text().strip())
    except OSError:
        return None
