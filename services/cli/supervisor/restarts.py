"""The state machine of one supervised process: launch, readiness, restart with backoff, stop.

The caller passes the time. Only `stop` sends a signal.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from aima_core.errors import AimaError

FIRST_DELAY = 0.2  # seconds; a single crash should cost little
LONGEST_DELAY = 10.0  # seconds; a crash loop must not load the machine
WHY_LENGTH = 200  # characters of the last log line in a state; the log has the rest
LONG_LIFE = 5.0  # seconds; after a longer life, the next delay is the first one again

State = Literal["starting", "ready", "restarting", "stopping", "stopped"]


class Launchable(Protocol):
    """A process that can be launched repeatedly: nats-server or a forked child."""

    name: str

    @property
    def pid(self) -> int | None:
        """The pid of the running process, or None."""

    def launch(self) -> None:
        """Start the process and return at once. Raises OSError or AimaError if it cannot start."""

    def answers(self) -> bool:
        """Whether the process serves; returns at once."""

    def poll(self) -> int | None:
        """Return the exit code once the process has ended."""

    def send(self, number: int) -> None:
        """Send a signal; no effect if the process has ended."""


@dataclass(frozen=True)
class ProcessState:
    """The state of a process for display. `since` in Unix seconds; `retry_in` in seconds from `since`."""

    name: str
    state: State
    pid: int | None
    restarts: int
    since: float
    retry_in: float | None = None
    why: str | None = None
    """Why the process ended last; None once it is ready again."""

    def __str__(self) -> str:
        """Return the state in words: `ready`, `restarting in 0.4 s`."""
        return self.state if self.retry_in is None else f"{self.state} in {self.retry_in:g} s"


class Backoff:
    """The delay before a restart: 0.2 s, doubled at each restart up to 10 s. A run of 5 s resets it to 0.2 s."""

    def __init__(self) -> None:
        self._next = FIRST_DELAY

    def after(self, lived: float) -> float:
        """Return the delay, in seconds, before the restart of a process that ran for `lived` seconds."""
        delay = FIRST_DELAY if lived >= LONG_LIFE else self._next
        self._next = min(delay * 2, LONGEST_DELAY)
        return delay


class SupervisedProcess:
    """A process and its state. `now` is in monotonic seconds."""

    def __init__(self, process: Launchable, words: Callable[[], str] = lambda: "") -> None:
        """`words` returns the last lines of the process's log since its latest launch."""
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
        """Supervise a process that is already launched."""
        self._launched_at, self._launches = now, self._launches + 1
        self._enter("starting")

    def launch(self, now: float) -> None:
        """Launch the process; a failed launch is retried like a crash."""
        self.launched(now)
        try:
            self.process.launch()
        except (OSError, AimaError) as error:
            self._retry(now, f"cannot start: {error}")

    def step(self, now: float) -> None:
        """Poll the process: record its readiness or its end, or restart it when due."""
        match self.state:
            case "restarting" if self.retry_at is not None and now >= self.retry_at:
                self.launch(now)
            case "starting" | "ready" | "stopping":
                if self.state == "starting" and self.process.answers():
                    self._why = None
                    self._enter("ready")
                self.exit_code = self.process.poll()
                if self.exit_code is not None:
                    self._ended(self.exit_code, now)

    def stop(self, number: int) -> None:
        """Send the signal and end the restarts. If the process does not run, its state becomes `stopped` at once."""
        if self.process.pid is None:
            self._enter("stopped")
        else:
            self.process.send(number)
            self._enter("stopping")

    def snapshot(self) -> ProcessState:
        """Return the state for display."""
        restarts = max(self._launches - 1, 0)
        pid = self.process.pid
        return ProcessState(self.process.name, self.state, pid, restarts, self._since, self._retry_in, self._why)

    def _ended(self, code: int, now: float) -> None:
        if self.state == "stopping":
            self._enter("stopped")
        elif code < 0:
            self._retry(now, f"ended by signal {-code}")  # the process could not log the reason
        else:
            cause = reason(self._words(), self.process.name) if code else ""
            self._retry(now, f"ended with code {code}{': ' if cause else ''}{cause}")

    def _retry(self, now: float, why: str) -> None:
        delay = self._backoff.after(now - self._launched_at)
        self.retry_at, self._why = now + delay, why
        self._enter("restarting", delay)

    def _enter(self, state: State, retry_in: float | None = None) -> None:
        if state != self.state:
            self.state, self._since = state, time.time()
        self._retry_in = retry_in


def reason(text: str, name: str = "") -> str:
    """Return the last error in a process's log, as the reason for its end; empty if the log has no error."""
    for line in reversed(text.splitlines()):
        if message := _error_in(line):
            message = message.removeprefix(f"{name}: ")
            return message if len(message) <= WHY_LENGTH else message[: WHY_LENGTH - 1] + "…"
    return ""


def _error_in(line: str) -> str:
    """Return the error in a log line: a plain line, or the message of a JSON record of level error."""
    try:
        record: Any = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        plain = line.strip(" |+\t")  # Python's frame around an exception group
        return plain if any(sign.isalnum() for sign in plain) else ""
    if record.get("level") != "error":
        return ""
    return reason(str(record.get("traceback", ""))) or str(record.get("error") or record.get("message", ""))
