"""Keeps the outside world as the facts ask: after every commit, what `todo` names is running and nothing else.

There is no queue of effects and no table of retries: after a crash the log is folded, `todo` is asked, and the
same effects start again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic
from weakref import WeakSet

from aima_core import call as calls
from aima_core.call import current_call
from aima_core.domain import Domain, Effect, Outside, S
from aima_core.errors import AimaError
from aima_core.process.writer import Writer
from aima_core.store.records import Recorded
from aima_core.structured_logs import logger
from aima_core.units import Command

_FIRST_RETRY, _LAST_RETRY = 0.2, 10.0  # seconds; doubled after each failure
_CANCEL_AGAIN = 0.5  # seconds that a task gets to notice that it is cancelled


class Effects(Generic[S]):
    """The effects of one domain, as tasks."""

    def __init__(self, domain: Domain[S], runner: Writer[S], outside: Outside[S]) -> None:
        self._domain = domain
        self._runner = runner
        self._outside = outside
        self._running: dict[str, dict[Effect, asyncio.Task[None]]] = {}
        self._recording: set[asyncio.Task[None]] = set()
        self._done: WeakSet[asyncio.Task[None]] = WeakSet()  # of those running, the ones that have done their work
        self._before: dict[str, S] = {}

    def start(self) -> None:
        """Ask every stream what is to be done, and follow the commits from here on."""
        self._runner.listeners.append(self._on_commit)
        self._before = dict(self._runner.committed)
        for stream, state in self._before.items():
            self._adjust(stream, state, cause="")

    async def close(self) -> None:
        """Cancel all of them; the next process starts them anew."""
        if self._on_commit in self._runner.listeners:  # not when the start came to nothing
            self._runner.listeners.remove(self._on_commit)
        tasks = [task for effects in self._running.values() for task in effects.values()]
        await end(tasks)
        await asyncio.gather(*self._recording, return_exceptions=True)

    def _on_commit(self, records: Sequence[Recorded], states: Mapping[str, Any]) -> None:
        causes = {record.stream: record.id for record in records}
        for stream, state in states.items():
            if not self._done.isdisjoint(self._running.get(stream, {}).values()):
                self._call_off_between(stream, records)
            self._adjust(stream, state, causes.get(stream, ""))
            if state is None:
                self._before.pop(stream, None)
            else:
                self._before[stream] = state

    def _call_off_between(self, stream: str, records: Sequence[Recorded]) -> None:
        """Forget effects that were unwanted at any moment within a commit: wanted again after, they are done again.

        What a commit ends with does not show that: an outcome may be recorded together with the next request for the
        same effect.
        """
        state = self._before.get(stream)
        for record in [record for record in records if record.stream == stream][:-1]:
            state = self._domain.evolve(state, record.event)
            self._adjust(stream, state, cause="", begin=False)

    def _adjust(self, stream: str, state: S | None, cause: str, *, begin: bool = True) -> None:
        try:
            # in the order that todo names them, so that the same log always does the same
            wanted = dict.fromkeys(self._domain.todo(state)) if state is not None else {}
        except Exception:  # a bug that one stream runs into leaves the others alone
            logger.error("todo broke", stream=stream, exc_info=True)
            return
        running = self._running.get(stream, {})
        for effect in [effect for effect in running if effect not in wanted]:
            # an effect that is handing in its result has done its work; one that still works is called off
            task = running.pop(effect)
            self._done.discard(task)
            task.cancel()
        for effect in [effect for effect in wanted if effect not in running] if begin else ():
            running[effect] = asyncio.create_task(self._carry_out(effect, cause), name=f"{stream} {effect}")
        if running:
            self._running[stream] = running
        else:
            self._running.pop(stream, None)

    async def _carry_out(self, effect: Effect, cause: str) -> None:
        """Perform until it works, then record what came of it. Stays known as done until it is no longer wanted."""
        delay = _FIRST_RETRY
        while True:
            current_call.set(calls.fresh(self._runner.node, cause))
            try:
                outcome = list(await self._outside.perform(effect))
                self._done.add(_this_task())
                # recording the outcome may itself make this effect unwanted: it is never cut short by that
                recording = asyncio.create_task(self._record(outcome, cause))
                self._recording.add(recording)
                recording.add_done_callback(self._recording.discard)
                await asyncio.shield(recording)
            except AimaError as error:
                logger.warning("effect failed; trying again", effect=type(effect).__name__, error=str(error))
            except Exception:
                logger.error("effect broke; trying again", effect=type(effect).__name__, exc_info=True)
            else:
                return
            self._done.discard(_this_task())
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LAST_RETRY)

    async def _record(self, outcome: Sequence[Command[Any]], cause: str) -> None:
        for command in outcome:
            await self._runner.run(command, calls.fresh(self._runner.node, cause))


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel the tasks until they have ended: Python 3.11's wait_for, which the bus client uses, can lose one."""
    left = ended = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_CANCEL_AGAIN)
    await asyncio.gather(*ended, return_exceptions=True)  # what they ended with has been logged
