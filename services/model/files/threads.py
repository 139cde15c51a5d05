"""Runs blocking work in a thread that has always ended when the caller continues, also after a cancellation.

Otherwise a cancelled pull could still write into a folder that is being removed.
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

_cancelled: ContextVar[threading.Event | None] = ContextVar("cancelled", default=None)


class Cancelled(Exception):
    """The work was cancelled. Raised within the thread and discarded by `in_thread`."""


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking work in a thread. If cancelled, signal the work (see `raise_if_cancelled`) and wait for its end."""
    cancelled, context = threading.Event(), copy_context()
    context.run(_cancelled.set, cancelled)
    future = asyncio.get_running_loop().run_in_executor(None, partial(context.run, work, *args, **kwargs))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        cancelled.set()
        await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # retrieved, so that asyncio does not log it; the result is discarded
        raise


def raise_if_cancelled() -> None:
    """Raise Cancelled if the work of this thread was cancelled. To be called regularly in long loops."""
    cancelled = _cancelled.get()
    if cancelled is not None and cancelled.is_set():
        raise Cancelled
