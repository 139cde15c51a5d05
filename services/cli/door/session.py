"""The doors that one command line has opened: each once, on one event loop, closed when the command ends.

A command of a unit is built from what the domain says, and then asks the unit: both go over the same connection.
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
    """An event loop and its open doors, made when the first door is needed. Use it as a context manager."""

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
        """Return what the work with the door at an address returns; open the door if that has not been done yet.

        Raises Unavailable if there is no bus or gateway there.
        """
        import asyncio  # a command without a door does not pay for this import

        self._runner = self._runner or asyncio.Runner()
        return self._runner.run(self._with_door(address, work))

    def release(self) -> None:
        """Close all doors. A connection must not stay open while nobody reads from it, as at a prompt."""
        if self._runner and self._doors:
            self._doors.clear()
            self._runner.run(self._opened.aclose())

    async def _with_door(self, address: DoorAddress, work: Callable[[Door], Awaitable[T]]) -> T:
        from services.cli.door.opening import open_door

        place = replace(address, wait=CONNECT)  # how long to wait for it does not change where it is
        if place not in self._doors:
            self._doors[place] = await self._opened.enter_async_context(open_door(address))
        return await work(self._doors[place])


_current: ContextVar[Session | None] = ContextVar("session", default=None)


@contextlib.contextmanager
def session() -> Iterator[None]:
    """Let every `with_door` in the block share its doors."""
    with Session() as opened:
        token = _current.set(opened)
        try:
            yield
        finally:
            _current.reset(token)


def with_door(address: DoorAddress, work: Callable[[Door], Awaitable[T]]) -> T:
    """Return what the work with a door returns, in the session of the command line or else in one of its own."""
    current = _current.get()
    return current.run(address, work) if current else alone(address, work)


def alone(address: DoorAddress, work: Callable[[Door], Awaitable[T]]) -> T:
    """Do the same over a connection of its own, which ends with the work: between two of them, somebody may think."""
    with Session() as own:
        return own.run(address, work)


def release() -> None:
    """Close the doors of the session; the next `with_door` opens them again."""
    if current := _current.get():
        current.release()
