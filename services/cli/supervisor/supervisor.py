"""The parent of `aima up`: forks every process, launches again what dies, and ends all of them in order.

It has one thread and no event loop, because it forks again whenever a child has died, and a fork copies only the thread
that calls it. So `on_change` must start no thread either (rich: `Live(auto_refresh=False)`).
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Literal

from aima_core.bus.nats_server import NatsServer
from services.cli.supervisor.child import SIGNALS, ChildProcess, Run
from services.cli.supervisor.folder_lock import FolderLock
from services.cli.supervisor.restarts import ProcessState, SupervisedProcess

DRAIN = 30.0  # seconds that the children have for the requests under way
BUS_STOP = 5.0  # seconds that nats-server has to close its files
FINAL = (os.EX_CONFIG, os.EX_TEMPFAIL)  # a bad configuration; a log that another process holds
POLL = 0.05  # seconds between looks at a nats-server that starts: it has no pipe to tell us through
IDLE = 1.0  # seconds after which it looks around even when nothing has called it


class Supervisor:
    """Keeps the processes of one data folder alive until it is told to stop. Runs once."""

    def __init__(
        self,
        claim: FolderLock,
        nats: NatsServer | str,
        children: Mapping[str, Run],
        on_change: Callable[[Sequence[ProcessState]], None] = lambda _: None,
        drain: float = DRAIN,
    ) -> None:
        """Take a nats-server that answers (it becomes ours to restart and to stop) or the address of a foreign one.

        `on_change` is called with the state of every process, in order, whenever one of them changes.
        """
        self._claim, self._runs, self._on_change, self._drain = claim, children, on_change, drain
        self._bus = SupervisedProcess(nats) if isinstance(nats, NatsServer) else None
        self._url = nats.url if isinstance(nats, NatsServer) else nats
        self._children: list[ChildProcess] = []
        self._watched: list[SupervisedProcess] = []
        self._phase: Literal["serving", "draining", "ending", "over"] = "serving"
        self._deadline = float("inf")
        self._code = 0
        self._reported: list[ProcessState] = []
        self._published: dict[str, int] = {}

    def run(self) -> int:
        """Serve until SIGINT, SIGTERM, SIGHUP or `stop`; return the exit code.

        0 after a drain; 75 or 78 when a child said with it that it will never run.
        """
        if threading.active_count() > 1:
            raise RuntimeError("the supervisor forks, so nothing may have started a thread before")
        self._open()
        try:
            self._loop()
        except BaseException:
            self._on_change = lambda _: None  # what broke is the view or the disk; the processes still end in order
            self.stop()
            self._loop()
            raise
        finally:
            self._close()
        return self._code

    def stop(self) -> None:
        """Begin to drain, as SIGTERM does; nothing happens when it has begun. For `on_change` to call."""
        if self._phase == "serving":
            self._phase, self._deadline = "draining", time.monotonic() + self._drain
            for child in self._watched:
                child.stop(signal.SIGTERM)

    def _open(self) -> None:
        self._lifeline, self._held_end = os.pipe()
        self._wake, self._wake_in = os.pipe()
        for end in (self._wake, self._wake_in):
            os.set_blocking(end, False)
        # A handler must exist for the wake-up byte to be written; what is ignored (nohup) stays so.
        heard = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in heard}
        self._wake_before = signal.set_wakeup_fd(self._wake_in, warn_on_full_buffer=False)
        now = time.monotonic()
        if self._bus:
            self._bus.launched(now)
        for name, run in self._runs.items():
            log = self._claim.data / name / "process.log"
            self._children.append(ChildProcess(name, run, log, self._lifeline, self._private))
            self._watched.append(SupervisedProcess(self._children[-1], self._children[-1].last_words))
        for child in self._watched:
            child.launch(now)

    def _close(self) -> None:
        signal.set_wakeup_fd(self._wake_before)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        for end in (self._lifeline, self._held_end, self._wake, self._wake_in):
            os.close(end)
        self._claim.withdraw()

    def _private(self) -> list[int]:
        return [self._held_end, self._wake, self._wake_in, *self._ready_pipes()]

    def _ready_pipes(self) -> list[int]:
        return [child.ready_fd for child in self._children if child.ready_fd is not None]

    def _all(self) -> list[SupervisedProcess]:
        return [self._bus, *self._watched] if self._bus else self._watched

    def _loop(self) -> None:
        while True:
            now = time.monotonic()
            for watched in self._all():
                watched.step(now)
            self._advance(now)
            self._report()
            if self._phase == "over":
                return
            self._listen(now)

    def _advance(self, now: float) -> None:
        """Go on to the next phase when its time has come."""
        match self._phase:
            case "serving":
                for child, watched in zip(self._children, self._watched, strict=True):
                    if watched.exit_code in FINAL:
                        self._give_up(child, watched.exit_code)
            case "draining":
                if now >= self._deadline:
                    self._kill()
                if all(child.state == "stopped" for child in self._watched):
                    self._phase, self._deadline = "ending", now + BUS_STOP
                    if self._bus:
                        self._bus.stop(signal.SIGTERM)
                    self._advance(now)
            case "ending" if self._bus and self._bus.state != "stopped":
                if now >= self._deadline:
                    self._bus.stop(signal.SIGKILL)
            case "ending":
                self._phase = "over"
            case _:
                pass

    def _give_up(self, child: ChildProcess, code: int) -> None:
        self._code = code
        sys.stderr.write(f"{child.name} cannot run (exit code {code}):\n{child.last_words()}\n")
        self.stop()

    def _kill(self) -> None:
        self._deadline = time.monotonic() + IDLE  # once more, should it not have helped
        for child in self._watched:
            child.stop(signal.SIGKILL)

    def _report(self) -> None:
        seen = [watched.seen() for watched in self._all()]
        pids = {state.name: state.pid for state in seen if state.pid is not None}
        if self._phase == "serving" and pids != self._published:
            # A full disk later on is no reason to stop what runs.
            with suppress(*([OSError] if self._published else [])):
                self._claim.publish(self._url, pids)
            self._published = pids
        if seen != self._reported:
            self._reported = seen
            self._on_change(seen)

    def _listen(self, now: float) -> None:
        """Wait until there is something to do, and take what the signals said."""
        until = [self._deadline, now + IDLE]
        until += [watched.retry_at for watched in self._all() if watched.state == "restarting" and watched.retry_at]
        if self._bus and self._bus.state == "starting":
            until.append(now + POLL)
        poll = select.poll()
        for descriptor in (self._wake, *self._ready_pipes()):
            poll.register(descriptor, select.POLLIN)
        poll.poll(max(0.0, min(until) - now) * 1000)
        with suppress(BlockingIOError):
            self._heed(set(os.read(self._wake, 4096)))

    def _heed(self, signals: set[int]) -> None:
        if not signals & {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}:
            return
        if self._phase == "serving":
            self.stop()
        elif signals & {signal.SIGINT, signal.SIGTERM}:  # a terminal that closes sends SIGHUP more than once
            self._deadline = 0.0
