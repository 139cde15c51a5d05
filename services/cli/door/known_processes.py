"""Remembers which processes served on a bus, in a file, so that the next listing knows whose answers to wait for.

Nothing else is taken from the file: what runs is always asked. A file that is missing, damaged or not ours only makes
the next listing wait as long as without it. Keys are digests: the address of a bus may contain a password.
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
_MOST_BUSES = 8  # that are remembered, the last used ones
_MOST_PROCESSES = 200  # of one bus; more are not remembered
_LONGEST = 100  # characters of a name


class _File(msgspec.Struct):
    buses: dict[str, list[Process]]


def recall(settings: ClientSettings) -> frozenset[Process]:
    """Return the processes that served on the bus of the settings; empty if that is not known."""
    return frozenset(_read(_path(settings)).buses.get(_key(settings), ()))


def remember(settings: ClientSettings, processes: Collection[Process]) -> None:
    """Write down the processes that serve now, if they are others than before. Does nothing if that is impossible."""
    file, key = _path(settings), _key(settings)
    known = _read(file).buses
    kept = sorted({each for each in processes if max(map(len, each)) <= _LONGEST})
    if len(kept) > _MOST_PROCESSES or known.get(key) == kept:
        return
    others = [(each, found) for each, found in known.items() if each != key]
    buses = dict([*others, (key, kept)][-_MOST_BUSES:])
    with contextlib.suppress(OSError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = file.with_name(f"{file.name}.{os.getpid()}")
        # O_EXCL does not follow a link that somebody else may have put there
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as out:
            out.write(msgspec.json.encode(_File(buses)))
        temporary.replace(file)


def _read(file: Path) -> _File:
    """Return the file's content; nothing of a file that is too large, damaged, or that another user may write."""
    try:
        # O_NONBLOCK: a named pipe in its place must not make us wait
        with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as content:
            found = os.fstat(content.fileno())
            ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
            if not ours or found.st_size > _LARGEST:
                return _File({})
            return msgspec.json.decode(content.read(_LARGEST), type=_File)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _File({})


def _path(settings: ClientSettings) -> Path:
    return settings.data / "cli" / "processes.json"


def _key(settings: ClientSettings) -> str:
    return hashlib.blake2s(settings.nats.url.encode(), digest_size=16).hexdigest()
