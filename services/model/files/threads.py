"""Blocking work on files, in a thread that has ended when whoever asked for it goes on, even when it was called off.

Without that, a pull that is cancelled could still write into a folder that is being removed.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_called_off: ContextVar[threading.Event | None] = ContextVar("called_off", default=None)


class CalledOff(Exception):
    """Nobody waits for the work any more. Raised and swallowed within the thread's own call."""


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking work in a thread. Cancelled, it tells the work (see `go_on`) and waits until it has ended."""
    called_off, context = threading.Event(), copy_context()
    context.run(_called_off.set, called_off)
    future = asyncio.get_running_loop().run_in_executor(None, partial(context.run, work, *args, **kwargs))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        called_off.set()
        await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # seen: what came of the work interests nobody
        raise


def go_on() -> None:
    """Raise CalledOff when the work that this thread does is not wanted any more; long loops ask now and then."""
    called_off = _called_off.get()
    if called_off is not None and called_off.is_set():
        raise CalledOff
