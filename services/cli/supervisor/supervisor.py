"""The parent process of `aima up`: forks the children, restarts each child that dies, and stops them in order.

The supervisor has one thread and no event loop, because it forks whenever a child dies, and a fork copies only the
calling thread. So `on_change` must not start a thread either (rich: `Live(auto_refresh=False)`).
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

DRAIN = 30.0  # seconds for children to finish running requests
BUS_STOP = 5.0  # seconds for nats-server to close its files
FINAL = (os.EX_CONFIG, os.EX_TEMPFAIL)  # exit codes: invalid settings; a log that another process holds
POLL = 0.05  # seconds between polls of a starting nats-server, which reports through no pipe
IDLE = 1.0  # seconds between polls without any event


class Supervisor:
    """Keeps the processes of one data folder running until `stop` or a signal. `run` may be called only once."""

    def __init__(
        self,
        lock: FolderLock,
        nats: NatsServer | str,
        children: Mapping[str, Run],
        on_change: Callable[[Sequence[ProcessState]], None] = lambda _: None,
        drain: float = DRAIN,
    ) -> None:
        """`nats` is a running nats-server to supervise, or the address of a server that AIMA does not run.

        `on_change` receives the states of all processes, in order, whenever one changes.
        """
        self._lock, self._runs, self._on_change, self._drain = lock, children, on_change, drain
        self._bus = SupervisedProcess(nats) if isinstance(nats, NatsServer) else None
        self._url = nats.url if isinstance(nats, NatsServer) else nats
        self._children: list[ChildProcess] = []
        self._processes: list[SupervisedProcess] = []
        self._phase: Literal["serving", "draining", "ending", "over"] = "serving"
        self._deadline = float("inf")
        self._code = 0
        self._reported: list[ProcessState] = []
        self._published: dict[str, int] = {}

    def run(self) -> int:
        """Serve until SIGINT, SIGTERM, SIGHUP or `stop`; return the exit code.

        The exit code is 0 after a drain. It is 75 or 78 if a child cannot run and has exited with this code.
        """
        if threading.active_count() > 1:
            raise RuntimeError("the supervisor forks, so no other thread may run when it starts")
        self._open()
        try:
            self._loop()
        except BaseException:
            self._on_change = lambda _: None  # the display or the disk failed; stop the processes in order all the same
            self.stop()
            self._loop()
            raise
        finally:
            self._close()
        return self._code

    def stop(self) -> None:
        """Start to drain, as SIGTERM does. Idempotent; `on_change` may call it."""
        if self._phase == "serving":
            self._phase, self._deadline = "draining", time.monotonic() + self._drain
            for child in self._processes:
                child.stop(signal.SIGTERM)

    def _open(self) -> None:
        self._lifeline, self._held_end = os.pipe()
        self._wake, self._wake_in = os.pipe()
        for end in (self._wake, self._wake_in):
            os.set_blocking(end, False)
        # The wake-up byte is written only for signals with a handler; signals ignored by nohup stay ignored.
        handled = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in handled}
        self._wake_before = signal.set_wakeup_fd(self._wake_in, warn_on_full_buffer=False)
        now = time.monotonic()
        if self._bus:
            self._bus.launched(now)
        for name, run in self._runs.items():
            log = self._lock.data / name / "process.log"
            self._children.append(ChildProcess(name, run, log, self._lifeline, self._private))
            self._processes.append(SupervisedProcess(self._children[-1], self._children[-1].last_words))
        for child in self._processes:
            child.launch(now)

    def _close(self) -> None:
        signal.set_wakeup_fd(self._wake_before)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        for end in (self._lifeline, self._held_end, self._wake, self._wake_in):
            os.close(end)
        self._lock.withdraw()

    def _private(self) -> list[int]:
        return [self._held_end, self._wake, self._wake_in, *self._ready_pipes()]

    def _ready_pipes(self) -> list[int]:
        return [child.ready_fd for child in self._children if child.ready_fd is not None]

    def _all(self) -> list[SupervisedProcess]:
        return [self._bus, *self._processes] if self._bus else self._processes

    def _loop(self) -> None:
        while True:
            now = time.monotonic()
            for process in self._all():
                process.step(now)
            self._advance(now)
            self._report()
            if self._phase == "over":
                return
            self._wait(now)

    def _advance(self, now: float) -> None:
        """Enter the next phase when it is due."""
        match self._phase:
            case "serving":
                for child, process in zip(self._children, self._processes, strict=True):
                    if process.exit_code in FINAL:
                        self._give_up(child, process.exit_code)
            case "draining":
                if now >= self._deadline:
                    self._kill()
                if all(child.state == "stopped" for child in self._processes):
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
        self._deadline = time.monotonic() + IDLE  # send SIGKILL again if a child survives
        for child in self._processes:
            child.stop(signal.SIGKILL)

    def _report(self) -> None:
        states = [process.snapshot() for process in self._all()]
        pids = {state.name: state.pid for state in states if state.pid is not None}
        if self._phase == "serving" and pids != self._published:
            # A disk that fills up later must not stop running processes.
            with suppress(*([OSError] if self._published else [])):
                self._lock.publish(self._url, pids)
            self._published = pids
        if states != self._reported:
            self._reported = states
            self._on_change(states)

    def _wait(self, now: float) -> None:
        """Wait for an event, a deadline or a signal, and handle signals."""
        until = [self._deadline, now + IDLE]
        until += [process.retry_at for process in self._all() if process.state == "restarting" and process.retry_at]
        if self._bus and self._bus.state == "starting":
            until.append(now + POLL)
        poll = select.poll()
        for descriptor in (self._wake, *self._ready_pipes()):
            poll.register(descriptor, select.POLLIN)
        poll.poll(max(0.0, min(until) - now) * 1000)
        with suppress(BlockingIOError):
            self._handle(set(os.read(self._wake, 4096)))

    def _handle(self, signals: set[int]) -> None:
        if not signals & {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}:
            return
        if self._phase == "serving":
            self.stop()
        elif signals & {signal.SIGINT, signal.SIGTERM}:  # a closing terminal sends SIGHUP more than once
            self._deadline = 0.0
