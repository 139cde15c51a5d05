"""Starts programs and collects the exit codes of this process's children.

The kernel keeps a dead child as a zombie until its parent reads the exit code. No other process can read the code.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
from pathlib import Path

from services.engine.runtimes import Handle

REMEMBERED = 1000
"""Number of exit codes that are kept. Without a limit, an instance that restarts forever would fill the memory."""

_SECRET = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|KEY|CREDENTIALS?)(_|$)", re.IGNORECASE)


def inherited() -> dict[str, str]:
    """Return the environment that programs inherit: all variables except AIMA's settings and likely secrets."""
    env = {
        name: value for name, value in os.environ.items() if not name.startswith("AIMA_") and not _SECRET.search(name)
    }
    env["PYTHONUNBUFFERED"] = "1"  # the program buffers no log lines, so a crash loses none
    # Without SPT_NOENV, setproctitle (used by vLLM) overwrites the environment, which contains the marks.
    env["SPT_NOENV"] = "1"
    return env


def spawn(argv: tuple[str, ...], env: dict[str, str], cwd: str | Path, output: int) -> int:
    """Start a detached program, which outlives this process, and return its pid. Raises OSError or ValueError."""
    child = subprocess.Popen(
        argv,
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,  # in a session of its own, the program gets neither Ctrl-C nor SIGHUP of the terminal
    )
    # `Children` collects the exit code. Without a returncode, Popen warns at exit that the program still runs.
    child.returncode = 0
    return child.pid


class Children:
    """Reaps child processes and keeps their exit codes. Thread-safe."""

    def __init__(self) -> None:
        self._codes: dict[Handle, int | None] = {}  # None while the child runs
        self._lock = threading.Lock()

    def add(self, handle: Handle) -> None:
        with self._lock:
            ended = [child for child, code in self._codes.items() if code is not None]
            for child in ended[: max(0, len(ended) - REMEMBERED)]:
                del self._codes[child]
            self._codes[handle] = None

    def reap(self) -> None:
        """Collect the exit codes of ended children, so that no zombie remains."""
        with self._lock:
            for handle in [child for child, code in self._codes.items() if code is None]:
                try:
                    pid, status = os.waitpid(handle.pid, os.WNOHANG)
                except ChildProcessError:  # other code of this process has reaped the child: its exit code is lost
                    del self._codes[handle]
                    continue
                if pid:
                    self._codes[handle] = os.waitstatus_to_exitcode(status)

    def running(self, handle: Handle) -> bool:
        """Return whether the program is a child of this process and still runs."""
        self.reap()
        with self._lock:
            return handle in self._codes and self._codes[handle] is None

    def code(self, handle: Handle) -> int | None:
        """Return the exit code of a child; it is negative for a signal.

        Returns None while the child runs, and for a program that is not a child of this process.
        """
        self.reap()
        with self._lock:
            return self._codes.get(handle)


def why(error: Exception) -> str:
    """Return the text of an error that occurred when a program was started."""
    if isinstance(error, FileNotFoundError):
        return f"{error.filename} does not exist"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    return str(error)
