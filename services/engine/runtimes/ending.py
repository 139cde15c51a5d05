"""Noticing that a process has died, and making it die. Knows pids, not instances."""

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
"""Seconds between two looks where the kernel does not tell us that a process has died."""
KILLED = 5.0
"""Seconds until something that was killed must be gone; a process stuck in a driver is not."""


class Death(asyncio.Event):
    """Set by the kernel when the process has died, if it `tells` us; otherwise never."""

    tells = False

    async def maybe(self) -> None:
        """Return when the process has died, or when it is time to look oneself."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.wait(), None if self.tells else POLL)


@contextlib.contextmanager
def watched(pid: int) -> Iterator[Death]:
    """Watch a process, a child of ours or not. Look whether it is the right one after this was entered."""
    death = Death()
    descriptor = _pidfd(pid)
    if descriptor is None:
        yield death
        return
    death.tells = True
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, death.set)
    try:
        yield death
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _pidfd(pid: int) -> int | None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # gone already, or a kernel before 5.3
            return os.pidfd_open(pid)
    return None


def signal(processes: Sequence[psutil.Process], *, kill: bool) -> None:
    """Ask the processes to end, or make them; those that are gone are no error."""
    for process in processes:
        with contextlib.suppress(psutil.Error):  # psutil refuses when the pid has passed to another process
            if kill:
                process.kill()
            else:
                process.terminate()


def lives(process: psutil.Process) -> bool:
    """Return whether it is still that process, and no zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


async def gone(processes: Sequence[psutil.Process], seconds: float) -> None:
    """Return when none of them lives, or after so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(lives(process) for process in processes):  # noqa: ASYNC110 - nobody tells us
        await asyncio.sleep(0.02)


def kill(what: str, look: Callable[[], Iterable[psutil.Process]]) -> None:
    """Kill all that `look` finds until it finds nothing alive. Blocks, for milliseconds as a rule.

    Raises ExecutionFailed (reason STOP_FAILED) naming `what` when the system does not let go of it.
    """
    deadline = time.monotonic() + KILLED
    while remaining := [process for process in look() if lives(process)]:
        if time.monotonic() > deadline:
            pids = sorted(process.pid for process in remaining)
            raise ExecutionFailed(
                f"{what} does not end: the system does not let go of the processes {pids}",
                reason="STOP_FAILED",
                instance=what,
                pids=pids,
            )
        signal(remaining, kill=True)
        time.sleep(0.005)
