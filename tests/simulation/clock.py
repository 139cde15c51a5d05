"""An event loop on virtual time: when nothing is ready, its clock jumps to the next timer.

No socket, thread or subprocess takes part, and all chance is drawn from the seed: a run is the same every time.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context
from typing import Any, TypeVar

from aima_core.testing import NOON
from tests.simulation.life import LIFE

T = TypeVar("T")

_BEGIN = 1_000.0  # seconds on the monotonic clock when a run begins
_MOST_TURNS = 20_000  # of the loop without any time passing
_HOPS = (0.0, 0.0, 0.0001, 0.002)  # seconds that work in a thread takes
_LONG_HOP, _SELDOM = 0.3, 0.01  # seconds that it takes now and then, and how often


class Standstill(AssertionError):
    """The run cannot go on: nothing will ever happen again, or no time passes any more."""


class _Timers:
    """Stands in for the selector: waiting is moving the clock."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._turns = 0

    def select(self, timeout: float | None) -> tuple[()]:
        if timeout is None:
            raise Standstill("nothing will ever happen again")
        if timeout > 0:
            self._loop.now += timeout
            self._turns = 0
        self._turns += 1
        if self._turns > _MOST_TURNS:
            self._turns = 0  # ending the run takes a few more
            raise Standstill("it goes on and on without any time passing")
        return ()

    def close(self) -> None:
        pass


class VirtualLoop(asyncio.BaseEventLoop):
    """The loop of one run. `now` is its monotonic clock in seconds."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.now = _BEGIN
        self.rng = random.Random(seed)
        self._selector = _Timers(self)
        self._clock_resolution = 1e-9
        self.set_task_factory(_of_a_life)  # type: ignore[arg-type]  # asyncio's own stub asks for more

    def time(self) -> float:
        """Return the monotonic clock."""
        return self.now

    def wall(self) -> float:
        """Return the Unix time."""
        return NOON - _BEGIN + self.now

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """Run a function as a thread would: a little later, also when nobody waits for it any more."""
        future: asyncio.Future[T] = self.create_future()
        life = LIFE.get()

        def work() -> None:
            if life and life.dead:
                return
            try:
                result = func(*args)
            except Exception as error:
                if not future.done():
                    future.set_exception(error)
                    future.exception()  # seen: whoever asked may have left
            else:
                if not future.done():
                    future.set_result(result)

        self.call_later(self._hop(), work)
        return future

    def _hop(self) -> float:
        return _LONG_HOP if self.rng.random() < _SELDOM else self.rng.choice(_HOPS)

    def _process_events(self, _: object) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


def _of_a_life(
    loop: VirtualLoop, coro: Coroutine[Any, Any, Any], *, context: Context | None = None
) -> asyncio.Task[Any]:
    """Return a task that the process which makes it takes with it when it is killed."""
    task = asyncio.Task(coro, loop=loop, context=context)
    if life := (context.get(LIFE) if context is not None else LIFE.get()):
        life.tasks[task] = None
        task.add_done_callback(lambda ended: life.tasks.pop(ended, None))
    return task


@contextlib.contextmanager
def _virtual_time(loop: VirtualLoop) -> Iterator[None]:
    """Let all code see the loop's clock, and chance of the loop's seed."""
    state, chance = random.getstate(), random.Random(loop.rng.random())
    instead: list[tuple[Any, str, Any]] = [
        (time, "time", loop.wall),
        (time, "monotonic", loop.time),
        (time, "perf_counter", loop.time),
        (time, "perf_counter_ns", lambda: int(loop.now * 1e9)),
        (secrets, "token_hex", lambda size=32: chance.randbytes(size).hex()),
    ]
    real = [getattr(module, name) for module, name, _ in instead]
    random.seed(loop.rng.random())
    for module, name, function in instead:
        setattr(module, name, function)
    try:
        yield
    finally:
        for (module, name, _), function in zip(instead, real, strict=True):
            setattr(module, name, function)
        random.setstate(state)


def run(seed: int, main: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end in virtual time. Raises what it raises, and Standstill."""
    loop = VirtualLoop(seed)
    with _virtual_time(loop):
        try:
            return loop.run_until_complete(main(loop))
        finally:
            _end(loop)


def _end(loop: VirtualLoop) -> None:
    """Cancel what is left and close the loop."""
    while left := sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name()):
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.wait(left, timeout=1))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
