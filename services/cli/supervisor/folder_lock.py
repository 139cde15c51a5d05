"""The lock on a data folder, and the files through which commands find a running `aima up`.

The lock, `up.lock`, allows one `aima up` at a time. A supervisor and its children hold the lock until the last of these
processes ends. The files `nats.url` and `up.json` exist while the supervisor serves.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aima_core.bus.address import URL_FILE
from aima_core.errors import Conflict
from aima_core.system import file_locks

_LOCK_FILE = "up.lock"
_PROBED = 0.2  # seconds; a process that only checks the lock holds it for less
GRACE = 30.0  # seconds for the children of a killed supervisor to end; a drain takes as long at most


@dataclass(frozen=True)
class FolderLock:
    """A held lock on a data folder, valid inside `with claim(...)`."""

    data: Path
    started_at: str

    def publish(self, url: str, children: Mapping[str, int]) -> None:
        """Write the address of the bus to `nats.url` and the processes to `up.json`, each atomically."""
        _replace(self.data / URL_FILE, url + "\n")
        up = {"pid": os.getpid(), "url": url, "started_at": self.started_at, "children": dict(children)}
        _replace(self.data / "up.json", json.dumps(up, indent=2) + "\n")

    def withdraw(self) -> None:
        """Remove the files that `publish` writes. Idempotent."""
        for name in (URL_FILE, "up.json"):
            (self.data / name).unlink(missing_ok=True)


def runs(data: Path) -> bool:
    """Whether a supervisor, or a child of an ended supervisor, holds the lock. True if the lock cannot be read."""
    try:
        lock = os.open(data / _LOCK_FILE, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    try:
        file_locks.lock(lock, shared=True)  # the check holds the lock for a moment; `_lock` retries
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


@contextlib.contextmanager
def claim(data: Path, grace: float = GRACE) -> Iterator[FolderLock]:
    """Lock the data folder for this process and the children that it forks.

    Raises Conflict (ALREADY_RUNNING) after 0.2 s if another supervisor runs on the folder. Raises the same error if
    children of an ended supervisor still run after `grace` seconds. `details.pid` is the pid of the other supervisor.
    Raises OSError if the folder is not writable.
    """
    data.mkdir(parents=True, exist_ok=True)
    lock = os.open(data / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(lock, data, grace)
        held = FolderLock(data, datetime.now(UTC).isoformat(timespec="seconds"))
        # The file is never removed: another process may have just opened it.
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps({"pid": os.getpid(), "started_at": held.started_at}).encode(), 0)
        held.withdraw()  # files of a killed supervisor
        yield held
    finally:
        os.close(lock)


def _lock(lock: int, data: Path, grace: float) -> None:
    started_at = time.monotonic()
    while True:
        try:
            return file_locks.lock(lock)
        except BlockingIOError:
            holder = _holder(lock)
            pid = holder.get("pid")
            if pid is not None and _lives(pid) and time.monotonic() > started_at + _PROBED:
                raise Conflict(
                    f"aima up already runs on {data} (pid {pid}, since {holder.get('started_at')}); stop it first",
                    reason="ALREADY_RUNNING",
                    pid=pid,
                ) from None
            if time.monotonic() > started_at + grace:
                raise Conflict(
                    f"children of an ended aima up (pid {pid}) still run on {data}: {_remaining_children(data)}",
                    reason="ALREADY_RUNNING",
                    pid=pid,
                ) from None
            time.sleep(0.02)


def _holder(lock: int) -> dict[str, Any]:
    try:
        return dict(json.loads(os.pread(lock, 4096, 0)))
    except ValueError:  # the holder has not written its pid yet, or is only checking the lock
        return {}


def _remaining_children(data: Path) -> str:
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
    except PermissionError:  # a process of another user
        return True
    return True


def _replace(file: Path, text: str) -> None:
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    # The address may contain a password.
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(text)
    temporary.replace(file)
