"""Advisory locks on open files: flock(2). A lock belongs to the open file, so forked children share it."""

from __future__ import annotations

import fcntl


def lock(descriptor: int, *, shared: bool = False, wait: bool = False) -> None:
    """Lock an open file; raise BlockingIOError if another process holds it, or with `wait` block until it is free."""
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)


def unlock(descriptor: int) -> None:
    """Release the lock of an open file; also for children that still have the file open."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
