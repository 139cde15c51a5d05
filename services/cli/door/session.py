"""Keeps the open doors of one command line. Each door opens once, and closes when the command ends.

The command of a unit sends at least two requests: one for the unit's description, one to call the unit. Both use the
same connection. All doors share one event loop.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from services.cli.door.door import CONNECT, Door, DoorAddress

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")


class Session:
    """An event loop and its open doors, as a context manager. The loop starts with the first door."""

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None
        self._doors: dict[DoorAddress, Door] = {}
        self._opened = contextlib.AsyncExitStack()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.release()
        finally:
            if self._runner:
                self._runner.close()

    def run(self, address: DoorAddress, work: Callable[[Door], Awaitable[T]]) -> T:
        """Run `work` with the door at an address; return the result of `work`. Opens the door unless it is open.

        Raises Unavailable if there is no bus or gateway at the address.
        """
        import asyncio  # a command without a door does not pay for this import

        self._runner = self._runner or asyncio.Runner()
        return self._runner.run(self._with_door(address, work))

    def release(self) -> None:
        """Close all doors. Called before a prompt, because nothing reads from open connections during a prompt."""
        if self._runner and self._doors:
            self._doors.clear()
            self._runner.run(self._opened.aclose())

    async def _with_door(self, address: DoorAddress, work: Callable[[Door], Awaitable[T]]) -> T:
        from services.cli.door.opening import open_door

        place = replace(address, wait=CONNECT)  # addresses that differ only in `wait` share a door
        if place not in self._doors:
            self._doors[place] = await self._opened.enter_async_context(open_door(address))
        return await work(self._doors[place])


_current: ContextVar[Session | None] = ContextVar("session", default=None)


@contextlib.contextmanager
def session() -> Iterator[None]:
    """Start a session: all calls of `with_door` in the block share their doors."""
    with Session() as opened:
        token = _current.set(opened)
        try:
            yield
        finally:
            _current.reset(token)


def with_door(address: DoorAddress, work: Callable[[Door], Awaitable[T]]) -> T:
    """Run `work` with the door at an address; return the result of `work`. Uses the current session, if any."""
    current = _current.get()
    return current.run(address, work) if current else alone(address, work)


def alone(address: DoorAddress, work: Callable[[Door], Awaitable[T]]) -> T:
    """Open a new door, run `work` with it, and close the door. Return the result of `work`.

    A conversation uses this function, because the user may think for minutes between two messages.
    """
    with Session() as own:
        return own.run(address, work)


def release() -> None:
    """Close the doors of the session; the next `with_door` opens them again."""
    if current := _current.get():
        current.release()
