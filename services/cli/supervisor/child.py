"""One child process of `aima up`: forked, told apart from its parent, watched through a pipe.

A child shares the parent's imported code and nothing else that is open, apart from the lock on the data folder: the
folder is taken until the last of them is gone.
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

from aima_core.bus.nats_server import end_with_parent, log_tail

Run = Callable[[int, int], None]
"""What a child does: `run(ready_fd, lifeline_fd)`.

It writes b"1" to `ready_fd` when it serves, drains on SIGTERM and when `lifeline_fd` reads as ended (the parent is
gone), and then returns or exits. EX_CONFIG (78) and EX_TEMPFAIL (75) say that another try is of no use.
"""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)  # what the parent listens to
LOG_LIMIT = 10 * 2**20  # bytes; a larger log is put aside, in place of an older one, when its process starts


class ChildProcess:
    """A function that runs in a child process; launched as often as it is needed."""

    def __init__(self, name: str, run: Run, log: Path, lifeline: int, private: Callable[[], Iterable[int]]) -> None:
        self.name, self.log = name, log
        self.pid: int | None = None
        self.ready_fd: int | None = None
        self._run, self._lifeline = run, lifeline
        self._private = private  # the descriptors that are the parent's alone, at the time of the fork
        self._log_begin = 0

    def launch(self) -> None:
        """Fork. The parent must have a single thread. Raises OSError when there is no room for a process or its log."""
        log = self._open_log()
        ready, ready_in_child = os.pipe()
        _flush()
        parent, before = os.getpid(), signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            # No signal reaches the child before it has stopped sharing the parent's wake-up descriptor.
            pid = os.fork()
            if pid == 0:
                for own in (ready, *self._private()):
                    os.close(own)
                _live(self._run, log, ready_in_child, self._lifeline, parent)
        except OSError:
            os.close(ready)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(log)
            os.close(ready_in_child)
        with contextlib.suppress(OSError):  # the child does it too; whoever comes first
            os.setpgid(pid, pid)
        os.set_blocking(ready, False)
        self.pid, self.ready_fd = pid, ready

    def answers(self) -> bool:
        """Tell whether the child has said that it serves; true once, then `ready_fd` is closed."""
        if self.ready_fd is None:
            return False
        try:
            said = os.read(self.ready_fd, 1)
        except BlockingIOError:
            return False
        self._close_ready()  # said, or ended without a word
        return said == b"1"

    def poll(self) -> int | None:
        """Return the exit code once the child has ended (negative: the signal that ended it), and forget it."""
        if self.pid is None:
            return None
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            return None
        self.pid = None  # from here on the number may be anybody's
        self._close_ready()
        return os.waitstatus_to_exitcode(status)

    def send(self, number: int) -> None:
        """Send a signal; SIGKILL goes to all that the child has started in its group. Nothing when it is gone."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if number == signal.SIGKILL else os.kill)(self.pid, number)

    def last_words(self) -> str:
        """Return the end of what this launch has written."""
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


def _live(run: Run, log: int, ready: int, lifeline: int, parent: int) -> NoReturn:
    """Be the child: never returns into the parent's code, whatever happens."""
    code = 1
    try:
        os.setpgid(0, 0)  # a Ctrl-C at the terminal is for the parent
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        for number in (signal.SIGINT, signal.SIGHUP):  # only SIGTERM means drain
            signal.signal(number, signal.SIG_IGN)
        end_with_parent(parent, signal.SIGTERM)  # for a child that does not come round to its lifeline
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
        os._exit(code)  # not sys.exit: what the parent has registered is not the child's to run


def _redirect(log: int) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(nothing)
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
        with contextlib.suppress(OSError, ValueError):  # closed, or nobody reads it any more
            stream.flush()
