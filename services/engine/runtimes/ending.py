"""Waits for the death of processes, and kills processes. Works on pids and must not depend on instances."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import psutil

from aima_core.errors import ExecutionFailed

POLL = 0.5
"""Seconds between two checks whether a process lives, on systems without a notification (pidfd)."""
KILLED = 5.0
"""Seconds to wait after SIGKILL for the end of a process. A process that hangs in a driver does not end."""


class Death(asyncio.Event):
    """An event that is set when a process dies. It is never set on systems without a notification (pidfd)."""

    notifying = False

    async def wait_or_poll(self) -> None:
        """Wait until the process has died; without a notification, until the next check is due."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.wait(), None if self.notifying else POLL)


@contextlib.contextmanager
def watched(pid: int) -> Iterator[Death]:
    """Watch for the death of a process. The process need not be a child.

    The caller checks inside the block that the pid was not reused.
    """
    death = Death()
    descriptor = _pidfd(pid)
    if descriptor is None:
        yield death
        return
    death.notifying = True
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, death.set)
    try:
        yield death
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _pidfd(pid: int) -> int | None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # the process has ended, or the kernel is older than 5.3
            return os.pidfd_open(pid)
    return None


def signal(processes: Sequence[psutil.Process], *, kill: bool) -> None:
    """Send SIGTERM, or SIGKILL with `kill`. Processes that have ended are ignored."""
    for process in processes:
        with contextlib.suppress(psutil.Error):  # psutil raises if the pid now belongs to another process
            if kill:
                process.kill()
            else:
                process.terminate()


def lives(process: psutil.Process) -> bool:
    """Return whether the process runs: its pid is not reused, and it is not a zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


async def gone(processes: Sequence[psutil.Process], seconds: float) -> None:
    """Wait until none of the processes lives, but at most `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(lives(process) for process in processes):  # noqa: ASYNC110 - no notification
        await asyncio.sleep(0.02)


def kill(instance: str, find: Callable[[], Iterable[psutil.Process]]) -> None:
    """Kill the processes that `find` returns, again and again until none lives. Blocks, usually for milliseconds.

    Raises ExecutionFailed (STOP_FAILED) if processes survive SIGKILL for five seconds. The error names `instance`.
    """
    deadline = time.monotonic() + KILLED
    while remaining := [process for process in find() if lives(process)]:
        if time.monotonic() > deadline:
            pids = sorted(process.pid for process in remaining)
            raise ExecutionFailed(
                f"{instance} cannot be ended: its processes {pids} survived SIGKILL for {KILLED:g} s",
                reason="STOP_FAILED",
                instance=instance,
                pids=pids,
            )
        signal(remaining, kill=True)
        time.sleep(0.005)
