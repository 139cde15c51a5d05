"""Keeps one process alive: what state it is in, and when it is launched again.

Takes the time as an argument and sends no signal of its own accord.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from aima_core.errors import AimaError

FIRST_DELAY = 0.2  # seconds: a process that dies once should hardly be missed
LONGEST_DELAY = 10.0  # seconds: one that cannot live should not keep the machine busy
WHY_LENGTH = 200  # characters of what a process wrote last; the rest is in its log
LONG_LIFE = 5.0  # seconds after which a death counts as the first one again: a loop of deaths is quicker than that

State = Literal["starting", "ready", "restarting", "stopping", "stopped"]


class Launchable(Protocol):
    """What can be launched, and launched again; nats-server and a forked child alike."""

    name: str

    @property
    def pid(self) -> int | None:
        """The running process; None when there is none."""

    def launch(self) -> None:
        """Start it and return at once. Raises OSError or AimaError when that is impossible now."""

    def answers(self) -> bool:
        """Tell whether it serves; quick."""

    def poll(self) -> int | None:
        """Return the exit code once it has ended."""

    def send(self, number: int) -> None:
        """Send it a signal; nothing happens when it is gone."""


@dataclass(frozen=True)
class ProcessState:
    """One process as people see it. Times are unix seconds; `retry_in` (seconds) was true at `since`."""

    name: str
    state: State
    pid: int | None
    restarts: int
    since: float
    retry_in: float | None = None
    why: str | None = None
    """How its last life ended, until it is ready again."""

    def __str__(self) -> str:
        """Return the state in words: `ready`, `restarting in 0.4 s`."""
        return self.state if self.retry_in is None else f"{self.state} in {self.retry_in:g} s"


class Backoff:
    """How long to wait before the next launch: 0.2 s, doubling to 10 s, from the start again after a life of 5 s."""

    def __init__(self) -> None:
        self._next = FIRST_DELAY

    def after(self, lived: float) -> float:
        """Return the seconds to wait after a life of `lived` seconds."""
        delay = FIRST_DELAY if lived >= LONG_LIFE else self._next
        self._next = min(delay * 2, LONGEST_DELAY)
        return delay


class SupervisedProcess:
    """A process and its state. `now` is monotonic seconds everywhere."""

    def __init__(self, process: Launchable, words: Callable[[], str] = lambda: "") -> None:
        """Take the process and what returns the end of what its present life has written."""
        self.process, self._words = process, words
        self.state: State = "stopped"
        self.retry_at: float | None = None
        self.exit_code: int | None = None
        self._backoff = Backoff()
        self._launched_at, self._launches = 0.0, 0
        self._since = time.time()
        self._retry_in: float | None = None
        self._why: str | None = None

    def launched(self, now: float) -> None:
        """Take note that somebody else has launched the process; it is looked after from here on."""
        self._launched_at, self._launches = now, self._launches + 1
        self._become("starting")

    def launch(self, now: float) -> None:
        """Launch the process; a launch that fails is tried again like one that dies."""
        self.launched(now)
        try:
            self.process.launch()
        except (OSError, AimaError) as error:
            self._retry(now, f"it cannot be started: {error}")

    def step(self, now: float) -> None:
        """Look at the process and do what is due: note its end, its readiness, or launch it again."""
        match self.state:
            case "restarting" if self.retry_at is not None and now >= self.retry_at:
                self.launch(now)
            case "starting" | "ready" | "stopping":
                if self.state == "starting" and self.process.answers():
                    self._why = None
                    self._become("ready")
                self.exit_code = self.process.poll()
                if self.exit_code is not None:
                    self._ended(self.exit_code, now)

    def stop(self, number: int) -> None:
        """Send the signal and launch no more; what is not there is stopped at once."""
        if self.process.pid is None:
            self._become("stopped")
        else:
            self.process.send(number)
            self._become("stopping")

    def seen(self) -> ProcessState:
        """Return the state for people."""
        restarts = max(self._launches - 1, 0)
        pid = self.process.pid
        return ProcessState(self.process.name, self.state, pid, restarts, self._since, self._retry_in, self._why)

    def _ended(self, code: int, now: float) -> None:
        if self.state == "stopping":
            self._become("stopped")
        elif code < 0:
            self._retry(now, f"ended by signal {-code}")  # which it cannot have written about
        else:
            said = reason(self._words(), self.process.name) if code else ""
            self._retry(now, f"ended with code {code}{': ' if said else ''}{said}")

    def _retry(self, now: float, why: str) -> None:
        delay = self._backoff.after(now - self._launched_at)
        self.retry_at, self._why = now + delay, why
        self._become("restarting", delay)

    def _become(self, state: State, retry_in: float | None = None) -> None:
        if state != self.state:
            self.state, self._since = state, time.time()
        self._retry_in = retry_in


def reason(text: str, name: str = "") -> str:
    """Return why a process ended, by what it wrote: the last line of it that tells of trouble; empty when none does."""
    for line in reversed(text.splitlines()):
        if told := _trouble(line):
            told = told.removeprefix(f"{name}: ")
            return told if len(told) <= WHY_LENGTH else told[: WHY_LENGTH - 1] + "…"
    return ""


def _trouble(line: str) -> str:
    """Return what a line of a log says: all that is not of the log itself, and of that its errors."""
    try:
        record: Any = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        said = line.strip(" |+\t")  # the frame that Python draws around a group of exceptions
        return said if any(sign.isalnum() for sign in said) else ""
    if record.get("level") != "error":
        return ""
    return reason(str(record.get("traceback", ""))) or str(record.get("error") or record.get("message", ""))
