"""The interface of runtimes, which start, find and end programs. Must not depend on engines.

An instance has at most one living program, even after crashes and restarts of AIMA. So every runtime reads the running
programs from the machine at each call, not from memory. `tests/engine/runtime_contract.py` tests all runtimes.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

START_LINE = "=== aima starts "
"""Prefix of the line that a runtime writes to the log before each run, to separate the runs."""


class LaunchSpec(msgspec.Struct, frozen=True):
    """A program to run. `argv`: the command line, without a shell. `env`: added to the inherited environment.

    `instance` is the id of the instance, such as `eng-llamacpp-7f3a`: at most 120 letters, digits, `.`, `_`, `-`.
    `cwd` is the working folder, by default the runtime's folder. `Runtime.notes` returns the `notes` while the program
    lives. The names of notes are in lower case. Notes must not contain secrets.
    """

    instance: str
    argv: tuple[str, ...]
    env: dict[str, str] = msgspec.field(default_factory=dict)
    cwd: str | None = None
    notes: dict[str, str] = msgspec.field(default_factory=dict)

    def __repr__(self) -> str:
        # A value in the environment may be a secret, and a log may contain the repr.
        return f"LaunchSpec({self.instance!r}, {self.argv!r}, env={sorted(self.env)!r}, cwd={self.cwd!r})"


class Handle(msgspec.Struct, frozen=True):
    """A running program. `started_at` (Unix seconds) distinguishes it from a later program with the same pid."""

    instance: str
    pid: int
    started_at: float


# Inside the class Runtime, `list` is a method, so the types of its lists have names of their own.
Handles = list[Handle]
Lines = list[str]


class Stats(msgspec.Struct, frozen=True):
    """The resident memory (bytes) and CPU use (percent of one core; 200: two cores) of a program and its children.

    A page that several processes share is counted once per process.
    """

    memory_bytes: int
    cpu_percent: float


class Runtime(Protocol):
    """Starts programs, finds running programs, and ends programs."""

    async def start(self, spec: LaunchSpec) -> Handle:
        """Return the instance's living program. If there is none, start the program and return it.

        Idempotent, also for concurrent tasks and processes. Does not wait until the program is healthy. Raises
        ExecutionFailed (reason LAUNCH_FAILED) if the program cannot be started, ValidationFailed if the instance's id
        is not a valid file name.
        """
        ...

    async def find(self, instance: str) -> Handle | None:
        """Return the instance's living program, also after a restart of AIMA; None if there is none."""
        ...

    async def list(self) -> Handles:
        """Return the living programs of this AIMA, ordered by instance; never those of another AIMA."""
        ...

    async def notes(self, handle: Handle) -> dict[str, str]:
        """Return the notes of the program's LaunchSpec; empty if the program has ended."""
        ...

    async def stop(self, handle: Handle, timeout: float, force: bool) -> int | None:
        """End the program and all processes that it has started; return its exit code, None if unknown.

        Sends SIGTERM, then SIGKILL after `timeout` seconds; with `force`, SIGKILL at once. A negative exit code is the
        signal that ended the program. If the program has already ended, `stop` ends the processes that it left. Raises
        ExecutionFailed (reason STOP_FAILED) if processes survive SIGKILL.
        """
        ...

    async def wait(self, handle: Handle) -> int | None:
        """Wait for the program's death; return its exit code, None if unknown. May return up to a second late."""
        ...

    def logs(self, instance: str, tail: int) -> Lines:
        """Return the last `tail` lines of the instance's log, oldest first, also after the instance has ended."""
        ...

    async def stats(self, handle: Handle) -> Stats:
        """Return the program's memory and CPU use; zeros if the program has ended.

        The CPU use is the average since the previous call; at the first call, since the program's start.
        """
        ...

    async def rotate(self) -> None:
        """Keep the logs within their limits of size and number. Callers repeat it every few seconds. Raises OSError."""
        ...
