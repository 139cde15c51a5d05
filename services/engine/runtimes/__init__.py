"""The interface of runtimes, which start, find and end programs. Must not depend on engines.

An instance has at most one living program. Every implementation ensures this across crashes and restarts of its
caller: it reads the running programs from the machine each time, not from memory. The contract of all
implementations is `tests/engine/runtime_contract.py`.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

START_LINE = "=== aima starts "
"""Prefix of the line that a runtime writes to the log before each run, to separate the runs."""


class LaunchSpec(msgspec.Struct, frozen=True):
    """A program to run: `argv` for the kernel (no shell); `env` is added to the inherited environment.

    `instance` is the identity, such as `eng-llamacpp-7f3a`: letters, digits, `.`, `_`, `-`, at most 120 characters.
    `cwd` is the working folder, by default the runtime's own. `notes` can be read back while the program lives; their
    names are lower case, and they must not contain secrets.
    """

    instance: str
    argv: tuple[str, ...]
    env: dict[str, str] = msgspec.field(default_factory=dict)
    cwd: str | None = None
    notes: dict[str, str] = msgspec.field(default_factory=dict)

    def __repr__(self) -> str:
        # A value of the environment may be a secret, and a repr may end up in a log.
        return f"LaunchSpec({self.instance!r}, {self.argv!r}, env={sorted(self.env)!r}, cwd={self.cwd!r})"


class Handle(msgspec.Struct, frozen=True):
    """A running program. `started_at` (Unix seconds) distinguishes it from a later program with the same pid."""

    instance: str
    pid: int
    started_at: float


# Inside the classes below, `list` is the method.
Handles = list[Handle]
Lines = list[str]


class Stats(msgspec.Struct, frozen=True):
    """The use of a program and its children: resident memory in bytes, CPU in percent of one core (200: two cores).

    A page that several processes share is counted once per process.
    """

    memory_bytes: int
    cpu_percent: float


class Runtime(Protocol):
    """Starts programs, finds them again, ends them."""

    async def start(self, spec: LaunchSpec) -> Handle:
        """Return the instance's living program; start it if there is none.

        Idempotent, also across concurrent tasks and processes. Returns once the program was started, healthy or not.
        Raises ExecutionFailed (reason LAUNCH_FAILED) if it cannot be started, ValidationFailed for an instance id
        that is not a valid file name.
        """
        ...

    async def find(self, instance: str) -> Handle | None:
        """Return the instance's living program, also one that an earlier process started; None if there is none."""
        ...

    async def list(self) -> Handles:
        """Return the living programs of this AIMA, ordered by instance; never those of another AIMA."""
        ...

    async def notes(self, handle: Handle) -> dict[str, str]:
        """Return the notes that the program was started with; empty if it has ended."""
        ...

    async def stop(self, handle: Handle, timeout: float, force: bool) -> int | None:
        """End the program and everything it started; return its exit code, None if it is unknown.

        Sends SIGTERM, and SIGKILL after `timeout` seconds, or at once with `force`. A negative code is the signal
        that ended the program. If it has already ended, the processes that it left are ended. Raises ExecutionFailed
        (reason STOP_FAILED) if processes survive SIGKILL.
        """
        ...

    async def wait(self, handle: Handle) -> int | None:
        """Wait until the program has died, up to a second longer; return its exit code, None if it is unknown."""
        ...

    def logs(self, instance: str, tail: int) -> Lines:
        """Return the last `tail` lines that the instance wrote, oldest first, also after it has ended."""
        ...

    async def stats(self, handle: Handle) -> Stats:
        """Return the program's use. CPU: since the previous measurement, at first since the start.

        Zeros if it has ended.
        """
        ...

    async def rotate(self) -> None:
        """Keep the logs within their size and number. To be called every few seconds. Raises OSError."""
        ...
