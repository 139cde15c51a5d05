"""The port between the engine domain and whatever runs an engine's program.

One instance, one living program: every implementation keeps that promise across crashes and restarts of the
process that calls it, because the truth is read from the machine each time and not from memory. Nothing here
knows what an engine is; it starts, finds and ends programs. The suite in `tests/engine/runtime_contract.py`
states the contract for every implementation.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

START_LINE = "=== aima starts "
"""Begins the line that a runtime writes into the log before each run, so that runs are told apart."""


class LaunchSpec(msgspec.Struct, frozen=True):
    """What to run: `argv` as it is given to the kernel (no shell), `env` beside what the machine needs anyway.

    `instance` is the identity, such as `eng-llamacpp-7f3a`: letters, digits, `.`, `_`, `-`, at most 120.
    `cwd` is the working folder, by default the runtime's own. `notes` are found again with the program, for as long as
    it lives; names in lower case, no secrets.
    """

    instance: str
    argv: tuple[str, ...]
    env: dict[str, str] = msgspec.field(default_factory=dict)
    cwd: str | None = None
    notes: dict[str, str] = msgspec.field(default_factory=dict)

    def __repr__(self) -> str:
        # A value of the environment may be a secret, and what has a repr ends up in a log some day.
        return f"LaunchSpec({self.instance!r}, {self.argv!r}, env={sorted(self.env)!r}, cwd={self.cwd!r})"


class Handle(msgspec.Struct, frozen=True):
    """A program that was seen alive. `started_at` in seconds since the epoch tells it from a later one with its pid."""

    instance: str
    pid: int
    started_at: float


# Inside the classes below, `list` is the method.
Handles = list[Handle]
Lines = list[str]


class Stats(msgspec.Struct, frozen=True):
    """What a program and its children use: resident memory in bytes, CPU in percent of one core (200 = two cores).

    Pages that several of them share count once for each.
    """

    memory_bytes: int
    cpu_percent: float


class Runtime(Protocol):
    """Starts programs, finds them again, ends them."""

    async def start(self, spec: LaunchSpec) -> Handle:
        """Return the instance's living program; start it only when there is none.

        Safe to ask again, from several tasks and processes at once. Returns as soon as the program was started,
        which says nothing about its health. Raises ExecutionFailed (reason LAUNCH_FAILED) when it cannot be
        started, ValidationFailed for an instance id that cannot name a file.
        """
        ...

    async def find(self, instance: str) -> Handle | None:
        """Return the instance's living program, whoever started it; None when there is none."""
        ...

    async def list(self) -> Handles:
        """Return every living instance of this AIMA, ordered by instance; never another AIMA's."""
        ...

    async def notes(self, handle: Handle) -> dict[str, str]:
        """Return the notes that the program was started with; empty when it is gone."""
        ...

    async def stop(self, handle: Handle, timeout: float, force: bool) -> int | None:
        """End the program and everything it started; return its exit code, None when it cannot be known.

        It is asked to end, and made to after `timeout` seconds, or at once with `force`. A negative code is the
        signal that ended it. Gone already is no error: what it left running is ended then. Raises ExecutionFailed
        (reason STOP_FAILED) when the system does not let it end.
        """
        ...

    async def wait(self, handle: Handle) -> int | None:
        """Return when the program has died, within a second or so: its exit code, None when it cannot be known."""
        ...

    def logs(self, instance: str, tail: int) -> Lines:
        """Return the last `tail` lines that the instance wrote, oldest first, also when it has ended."""
        ...

    async def stats(self, handle: Handle) -> Stats:
        """Return what the program uses now; the CPU over the last second or more, at first since its start.

        Zeros when it is gone.
        """
        ...

    async def rotate(self) -> None:
        """Keep the logs within their size and number. Call it every few seconds. Raises OSError."""
        ...
