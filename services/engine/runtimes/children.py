"""Starting programs, and the exit codes of those that this very process started.

The kernel keeps a dead child as a zombie until its parent asks for the code, and answers nobody else.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
from pathlib import Path

from services.engine.runtimes import Handle

REMEMBERED = 1000
"""Exit codes kept for those who ask late; a restart loop must not fill the memory."""

_SECRET = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|KEY|CREDENTIALS?)(_|$)", re.IGNORECASE)


def inherited() -> dict[str, str]:
    """Return what every program gets of our environment: the PATH and the drivers, not our settings and secrets."""
    env = {
        name: value for name, value in os.environ.items() if not name.startswith("AIMA_") and not _SECRET.search(name)
    }
    env["PYTHONUNBUFFERED"] = "1"  # a line of the log is there when it was written, also before a crash
    # Engines that show a title in `ps` (vLLM does, by setproctitle) write it over their environment without this.
    env["SPT_NOENV"] = "1"
    return env


def spawn(argv: tuple[str, ...], env: dict[str, str], cwd: str | Path, output: int) -> int:
    """Start a program that outlives us and return its pid. Raises OSError or ValueError when it cannot be started."""
    child = subprocess.Popen(
        argv,
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,  # a Ctrl-C or a hang-up of our terminal is not meant for it, and its group is its own
    )
    # Children asks for the exit code. Without this, Popen would warn when we end that the program still runs.
    child.returncode = 0
    return child.pid


class Children:
    """Reaps the children it was told of. Safe to use from several threads."""

    def __init__(self) -> None:
        self._codes: dict[Handle, int | None] = {}  # None while it runs
        self._asking = threading.Lock()

    def add(self, handle: Handle) -> None:
        """Remember a program that this process has just started."""
        with self._asking:
            ended = [known for known, code in self._codes.items() if code is not None]
            for known in ended[: max(0, len(ended) - REMEMBERED)]:
                del self._codes[known]
            self._codes[handle] = None

    def reap(self) -> None:
        """Ask for the exit codes of all that have ended, so that no zombie remains."""
        with self._asking:
            for handle in [known for known, code in self._codes.items() if code is None]:
                try:
                    pid, status = os.waitpid(handle.pid, os.WNOHANG)
                except ChildProcessError:  # somebody else in this process has asked for it: the code is gone for good
                    del self._codes[handle]
                    continue
                if pid:
                    self._codes[handle] = os.waitstatus_to_exitcode(status)

    def running(self, handle: Handle) -> bool:
        """Return whether it is a child of ours whose exit code is still to come."""
        self.reap()
        with self._asking:
            return handle in self._codes and self._codes[handle] is None

    def code(self, handle: Handle) -> int | None:
        """Return the exit code, negative for a signal; None while it runs and when it was no child of ours."""
        self.reap()
        with self._asking:
            return self._codes.get(handle)


def why(error: Exception) -> str:
    """Return why a program could not be started, in words."""
    if isinstance(error, FileNotFoundError):
        return f"there is no {error.filename}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    return str(error)
