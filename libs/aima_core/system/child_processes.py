"""Child processes that do not outlive their purpose: they end with their parent, or with the block that runs them."""

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
_LINE_LIMIT = 64 * 1024  # bytes of a line that a child may print; asyncio's own default

# loaded here and not in `end_with_parent`: between fork and exec, importing or loading a library can deadlock
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent(parent: int, number: int) -> None:
    """Make the kernel send this process the signal when the thread that forked it ends; called in the child.

    Linux only. On other systems it does nothing: the child outlives a parent that was killed with SIGKILL.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # the parent ended before prctl took effect, so no signal will come
            os.kill(os.getpid(), number)


@contextlib.asynccontextmanager
async def child(
    argv: Sequence[str], *, env: Mapping[str, str] | None = None, line_limit: int = _LINE_LIMIT
) -> AsyncIterator[Process]:
    """Run a program, its stdout and stderr on one pipe; at the end of the block kill it with all its children.

    The program leads a session of its own, so Ctrl-C at the terminal does not reach it. `line_limit` in bytes.
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
