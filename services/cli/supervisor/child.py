"""One child process of `aima up`. The parent forks the child into its own process group and watches it through a pipe.

A child shares the parent's imported code. A child keeps only one of the parent's open files: the lock on the data
folder. So the folder stays locked until the last child has ended.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from aima_core.bus.nats_server import log_tail
from aima_core.system.child_processes import end_with_parent

Run = Callable[[int, int], None]
"""The function of a child: `run(ready_fd, lifeline_fd)`.

The function writes b"1" to `ready_fd` once it serves. It drains on SIGTERM, or when `lifeline_fd` reaches its end
because the parent has died. After the drain, the function returns or exits. The exit codes EX_CONFIG (78) and
EX_TEMPFAIL (75) mean that a restart cannot help.
"""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)  # handled by the parent
LOG_LIMIT = 10 * 2**20  # bytes; a larger log is rotated at the start of its process; one old log is kept


class ChildProcess:
    """A child process that runs a function. It can be launched again after it has ended."""

    def __init__(self, name: str, run: Run, log: Path, lifeline: int, private: Callable[[], Iterable[int]]) -> None:
        self.name, self.log = name, log
        self.pid: int | None = None
        self.ready_fd: int | None = None
        self._run, self._lifeline = run, lifeline
        self._private = private  # descriptors that a new child must close
        self._log_begin = 0

    def launch(self) -> None:
        """Fork the child. The parent must have one thread. Raises OSError if the fork or opening the log fails."""
        log = self._open_log()
        ready, ready_in_child = os.pipe()
        _flush()
        parent, before = os.getpid(), signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            # Signals stay blocked until the child no longer writes to the parent's wake-up descriptor.
            pid = os.fork()
            if pid == 0:
                for descriptor in (ready, *self._private()):
                    os.close(descriptor)
                _run_child(self._run, log, ready_in_child, self._lifeline, parent)
        except OSError:
            os.close(ready)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(log)
            os.close(ready_in_child)
        with contextlib.suppress(OSError):  # the child does the same; either may be first
            os.setpgid(pid, pid)
        os.set_blocking(ready, False)
        self.pid, self.ready_fd = pid, ready

    def answers(self) -> bool:
        """Return True only at the first call after the child has reported that it serves. Closes `ready_fd` then."""
        if self.ready_fd is None:
            return False
        try:
            byte = os.read(self.ready_fd, 1)
        except BlockingIOError:
            return False
        self._close_ready()  # the child has reported or ended
        return byte == b"1"

    def poll(self) -> int | None:
        """Return None while the child runs, then its exit code once. The code is negative if a signal ended it."""
        if self.pid is None:
            return None
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            return None
        self.pid = None  # the kernel may reuse the pid from here on
        self._close_ready()
        return os.waitstatus_to_exitcode(status)

    def send(self, number: int) -> None:
        """Send a signal; SIGKILL goes to the child's whole process group. No effect if the child has ended."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if number == signal.SIGKILL else os.kill)(self.pid, number)

    def last_words(self) -> str:
        """Return the last lines of the log since the latest launch."""
        return log_tail(self.log, since=self._log_begin)

    def _open_log(self) -> int:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > LOG_LIMIT:
            self.log.replace(self.log.with_suffix(".log.1"))
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._log_begin = os.fstat(log).st_size
        return log

    def _close_ready(self) -> None:
        if self.ready_fd is not None:
            os.close(self.ready_fd)
            self.ready_fd = None


def _run_child(run: Run, log: int, ready: int, lifeline: int, parent: int) -> NoReturn:
    """Run the child's function and end the child process. Never returns."""
    code = 1
    try:
        os.setpgid(0, 0)  # Ctrl-C at the terminal must reach the parent only
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        for number in (signal.SIGINT, signal.SIGHUP):  # only SIGTERM drains
            signal.signal(number, signal.SIG_IGN)
        end_with_parent(parent, signal.SIGTERM)  # in case the child does not read its lifeline
        _redirect(log)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        run(ready, lifeline)
        code = 0
    except SystemExit as exit_:
        code = _exit_code(exit_)
    except BaseException:
        traceback.print_exc()
    finally:
        _flush()
        os._exit(code)  # not sys.exit: the parent's exit handlers must not run here


def _redirect(log: int) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(null)
    os.close(log)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


def _exit_code(exit_: SystemExit) -> int:
    if exit_.code is None or isinstance(exit_.code, int):
        return exit_.code or 0
    sys.stderr.write(f"{exit_.code}\n")
    return 1


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed, or its reader has gone
            stream.flush()
