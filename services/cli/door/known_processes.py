"""Stores the processes that serve on a bus, in a file. The next listing ends once all of these processes have answered.

The file is only a hint: a listing always asks the processes themselves. If the file is missing, damaged or owned by
another user, the next listing takes longer. The file contains digests of the addresses of buses, because an address may
contain a password.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Collection
from pathlib import Path

import msgspec

from aima_core.bus.discovery import Process
from services.cli.door.client_settings import ClientSettings

_LARGEST = 64 * 1024  # bytes of the file; a larger one is not read
_MOST_BUSES = 8  # buses in the file: the last used ones
_MOST_PROCESSES = 200  # processes of one bus; a bus with more is not stored
_LONGEST = 100  # characters of a name


class _File(msgspec.Struct):
    buses: dict[str, list[Process]]


def recall(settings: ClientSettings) -> frozenset[Process]:
    """Return the stored processes of the bus in the settings. Returns an empty set if none are stored."""
    return frozenset(_read(_path(settings)).buses.get(_key(settings), ()))


def remember(settings: ClientSettings, processes: Collection[Process]) -> None:
    """Store the processes that serve now, if they differ from the stored ones. Does nothing if writing fails."""
    file, key = _path(settings), _key(settings)
    stored = _read(file).buses
    kept = sorted({each for each in processes if max(map(len, each)) <= _LONGEST})
    if len(kept) > _MOST_PROCESSES or stored.get(key) == kept:
        return
    others = [(each, served) for each, served in stored.items() if each != key]
    buses = dict([*others, (key, kept)][-_MOST_BUSES:])
    with contextlib.suppress(OSError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = file.with_name(f"{file.name}.{os.getpid()}")
        # O_EXCL: do not follow a link that another user has put in the place of the file
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as out:
            out.write(msgspec.json.encode(_File(buses)))
        temporary.replace(file)


def _read(file: Path) -> _File:
    """Return the file's content. Returns no buses if the file is too large, damaged or writable by other users."""
    try:
        # O_NONBLOCK: do not wait if a named pipe is in the place of the file
        with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as content:
            status = os.fstat(content.fileno())
            ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022
            if not ours or status.st_size > _LARGEST:
                return _File({})
            return msgspec.json.decode(content.read(_LARGEST), type=_File)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _File({})


def _path(settings: ClientSettings) -> Path:
    return settings.data / "cli" / "processes.json"


def _key(settings: ClientSettings) -> str:
    return hashlib.blake2s(settings.nats.url.encode(), digest_size=16).hexdigest()
