"""Advisory locks on open files, with flock(2). A forked child inherits the open files of its parent and their locks."""

from __future__ import annotations

import fcntl


def lock(descriptor: int, *, shared: bool = False, wait: bool = False) -> None:
    """Lock an open file. If another process holds the lock, raises BlockingIOError. With `wait`, waits for the lock."""
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)


def unlock(descriptor: int) -> None:
    """Release the lock of an open file, even if children still have the file open."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
