"""Runs blocking work in a thread. The caller continues only after the thread's end, even if the caller is cancelled.

If the caller did not wait, the thread of a cancelled pull could write into a folder while AIMA removes the folder.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_WAITING = ThreadPoolExecutor(16, "waiting")  # as many as pulls at once; it starts its threads when they are needed
_cancelled: ContextVar[threading.Event | None] = ContextVar("cancelled", default=None)


class Cancelled(Exception):
    """The work was cancelled. The thread raises this exception, and `in_thread` discards it."""


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking work in a thread and return its result. A cancellation waits until the work has ended.

    The work ends early if it calls `raise_if_cancelled`.
    """
    return await _run(None, partial(work, *args, **kwargs))


async def in_waiting_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run work as `in_thread` does, for work that itself waits for requests of this process.

    It has threads of its own: requests need the usual threads to find addresses, and would wait for them for ever.
    """
    return await _run(_WAITING, partial(work, *args, **kwargs))


async def _run(executor: ThreadPoolExecutor | None, work: Callable[[], T]) -> T:
    cancelled, context = threading.Event(), copy_context()
    context.run(_cancelled.set, cancelled)
    future = asyncio.get_running_loop().run_in_executor(executor, partial(context.run, work))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        cancelled.set()
        await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # asyncio would log an exception that nobody retrieves
        raise


def raise_if_cancelled() -> None:
    """Raise Cancelled if the work of this thread was cancelled. Long loops must call this function regularly."""
    cancelled = _cancelled.get()
    if cancelled is not None and cancelled.is_set():
        raise Cancelled
