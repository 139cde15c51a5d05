"""Who runs on a data folder: one `aima up` at a time, and the files that tell others where it is.

`up.lock` is held while a supervisor or any of its children lives; `nats.url` and `up.json` are there while it serves.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aima_core.errors import Conflict
from aima_core.settings import URL_FILE

_LOCK_FILE = "up.lock"
_PROBED = 0.2  # seconds that somebody who only looks may hold the lock: far longer than it takes
GRACE = 30.0  # seconds that the children of a supervisor that was killed may take to end: as long as a drain


@dataclass(frozen=True)
class FolderLock:
    """The right to run on a data folder, as long as the `with claim(...)` lasts."""

    data: Path
    started_at: str

    def publish(self, url: str, children: Mapping[str, int]) -> None:
        """Write the bus's address to `nats.url` and what runs to `up.json`, each in one step."""
        _replace(self.data / URL_FILE, url + "\n")
        up = {"pid": os.getpid(), "url": url, "started_at": self.started_at, "children": dict(children)}
        _replace(self.data / "up.json", json.dumps(up, indent=2) + "\n")

    def withdraw(self) -> None:
        """Remove what `publish` wrote; nothing happens when there is nothing."""
        for name in (URL_FILE, "up.json"):
            (self.data / name).unlink(missing_ok=True)


def runs(data: Path) -> bool:
    """Whether a supervisor, or a child of one that was killed, holds the data folder; who cannot tell says yes."""
    try:
        lock = os.open(data / _LOCK_FILE, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # for a moment: `_lock` tries again
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


@contextlib.contextmanager
def claim(data: Path, grace: float = GRACE) -> Iterator[FolderLock]:
    """Take the data folder for this process and the children it forks.

    Raises Conflict (ALREADY_RUNNING) soon when another supervisor runs there, and after `grace` seconds when only
    children of one that was killed are left and do not end; `details.pid` is that supervisor. OSError when the folder
    cannot be written.
    """
    data.mkdir(parents=True, exist_ok=True)
    lock = os.open(data / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(lock, data, grace)
        claimed = FolderLock(data, datetime.now(UTC).isoformat(timespec="seconds"))
        # The file stays for ever: who removes a lock file takes it from somebody who has just opened it.
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps({"pid": os.getpid(), "started_at": claimed.started_at}).encode(), 0)
        claimed.withdraw()  # what a killed supervisor has left
        yield claimed
    finally:
        os.close(lock)


def _lock(lock: int, data: Path, grace: float) -> None:
    begun = time.monotonic()
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(lock)
            pid = holder.get("pid")
            if pid is not None and _lives(pid) and time.monotonic() > begun + _PROBED:
                raise Conflict(
                    f"aima up already runs on {data} (pid {pid}, since {holder.get('started_at')}); stop it first",
                    reason="ALREADY_RUNNING",
                    pid=pid,
                ) from None
            if time.monotonic() > begun + grace:
                raise Conflict(
                    f"processes of an earlier aima up (pid {pid}, gone) still run on {data}: {_left(data)}",
                    reason="ALREADY_RUNNING",
                    pid=pid,
                ) from None
            time.sleep(0.02)


def _holder(lock: int) -> dict[str, Any]:
    try:
        return dict(json.loads(os.pread(lock, 4096, 0)))
    except ValueError:  # it has the lock and is about to write its name; or somebody looks whether one has it
        return {}


def _left(data: Path) -> str:
    try:
        children = json.loads((data / "up.json").read_bytes())["children"]
        return ", ".join(f"{name} (pid {pid})" for name, pid in children.items() if _lives(pid))
    except (OSError, ValueError, KeyError):
        return "unknown"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's, and there
        return True
    return True


def _replace(file: Path, text: str) -> None:
    new = file.with_name(f"{file.name}.{os.getpid()}")
    # An address may hold a password.
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(text)
    new.replace(file)
