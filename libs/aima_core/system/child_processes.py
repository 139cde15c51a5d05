"""Runs child processes that end with their parent, or with the block that runs them."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Mapping, Sequence

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LINE_LIMIT = 64 * 1024  # bytes of the longest line that a child may print; asyncio's own default

# loaded here, because loading a library between fork and exec, as in `end_with_parent`, can deadlock
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent(parent: int, number: int) -> None:
    """Make the kernel send the signal to this process when the thread that forked it ends. Call it in the child.

    Works only on Linux. On other systems, a child continues after its parent was killed with SIGKILL.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # the parent ended before prctl took effect, so no signal will come
            os.kill(os.getpid(), number)


@contextlib.asynccontextmanager
async def child(
    argv: Sequence[str], *, env: Mapping[str, str] | None = None, line_limit: int = _LINE_LIMIT
) -> AsyncIterator[Process]:
    """Run a program with stdout and stderr on one pipe. The end of the block kills the program and its children.

    The program has a session of its own, so Ctrl-C at the terminal does not reach it. `line_limit` is in bytes.
    """
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, env=env, limit=line_limit, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
