"""Starts programs and collects the exit codes of this process's children.

The kernel keeps a dead child as a zombie until its parent, and only its parent, asks for the exit code.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
from pathlib import Path

from services.engine.runtimes import Handle

REMEMBERED = 1000
"""Exit codes kept for later queries; bounded, so that a restart loop does not fill the memory."""

_SECRET = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|KEY|CREDENTIALS?)(_|$)", re.IGNORECASE)


def inherited() -> dict[str, str]:
    """Return the environment that programs inherit: all variables but AIMA's settings and likely secrets."""
    env = {
        name: value for name, value in os.environ.items() if not name.startswith("AIMA_") and not _SECRET.search(name)
    }
    env["PYTHONUNBUFFERED"] = "1"  # log lines are not buffered, so a crash loses none
    # Without this, setproctitle (vLLM uses it) overwrites the environment, and with it the marks.
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
        start_new_session=True,  # Ctrl-C or a hang-up of the terminal must not reach it; it leads its own process group
    )
    # Children collects the exit code. Without this, Popen warns at exit that the program still runs.
    child.returncode = 0
    return child.pid


class Children:
    """Reaps the children that were added and keeps their exit codes. Thread-safe."""

    def __init__(self) -> None:
        self._codes: dict[Handle, int | None] = {}  # None while it runs
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
                except ChildProcessError:  # other code of this process has reaped it: the exit code is lost
                    del self._codes[handle]
                    continue
                if pid:
                    self._codes[handle] = os.waitstatus_to_exitcode(status)

    def running(self, handle: Handle) -> bool:
        """Return whether it is a child whose exit code is not known yet."""
        self.reap()
        with self._lock:
            return handle in self._codes and self._codes[handle] is None

    def code(self, handle: Handle) -> int | None:
        """Return the exit code, negative for a signal; None while it runs, or if it is not a child of this process."""
        self.reap()
        with self._lock:
            return self._codes.get(handle)


def why(error: Exception) -> str:
    """Return the cause why a program could not be started."""
    if isinstance(error, FileNotFoundError):
        return f"{error.filename} does not exist"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    return str(error)
