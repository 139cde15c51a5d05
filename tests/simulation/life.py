"""One life of a process: everything that runs in it ends when it is killed, and nothing that it does counts after.

What a process touches of the world - the bus, its log, threads, programs - asks first whether it lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar

_MOST_ROUNDS = 200  # of cancelling; code that cleans up is cancelled again wherever it waits

LIFE: ContextVar[Life | None] = ContextVar("life", default=None)
"""The life that the running code is of; None outside of any process of ours."""


class Life:
    """Of one process. `on_death` is called at the moment of it."""

    def __init__(self, name: str, on_death: Callable[[], None] = lambda: None) -> None:
        self.name = name
        self.dead = False
        self.tasks: dict[asyncio.Task[object], None] = {}
        self._on_death = on_death

    def check(self) -> None:
        """End the code that runs unless the process lives."""
        if self.dead:
            raise asyncio.CancelledError(f"{self.name} was killed")

    def kill(self) -> None:
        """Let the process be dead from now on. What ran in it is `buried` later."""
        if not self.dead:
            self.dead = True
            self._on_death()

    async def buried(self) -> None:
        """Return when no code of the process runs any more; no time passes."""
        self.kill()
        for _ in range(_MOST_ROUNDS):
            if not self.tasks:
                return
            for task in list(self.tasks):
                task.cancel()
            await asyncio.sleep(0)
        raise AssertionError(f"{self.name} was killed and still runs: {list(self.tasks)}")
