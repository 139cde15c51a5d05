"""Runs the effects of a domain. After every commit, exactly the effects that `todo` returns are running.

No queue of effects and no table of retries is stored. After a crash, the process loads the states from the log. `todo`
then returns the same effects, and they start again.
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

_FIRST_RETRY, _LAST_RETRY = 0.2, 10.0  # seconds until an effect is tried again; doubled after each failure
_CANCEL_AGAIN = 0.5  # seconds until a cancelled task that still runs is cancelled again


class Effects(Generic[S]):
    """The running effects of one domain. Each effect is a task."""

    def __init__(self, domain: Domain[S], writer: Writer[S], outside: Outside[S]) -> None:
        self._domain = domain
        self._writer = writer
        self._outside = outside
        self._running: dict[str, dict[Effect, asyncio.Task[None]]] = {}
        self._recording: set[asyncio.Task[None]] = set()
        self._performed: WeakSet[asyncio.Task[None]] = WeakSet()  # running tasks whose `perform` has returned
        self._states: dict[str, S] = {}
        """The states after the last commit for which the effects were adjusted."""

    def start(self) -> None:
        """Start the effects of every stream. From now on, each commit adjusts the effects."""
        self._writer.listeners.append(self._on_commit)
        self._states = dict(self._writer.states.committed)
        for stream, state in self._states.items():
            self._adjust(stream, state, cause="")

    async def close(self) -> None:
        """Cancel all effects. The next process starts them again."""
        if self._on_commit in self._writer.listeners:  # absent if `start` was never called
            self._writer.listeners.remove(self._on_commit)
        tasks = [task for effects in self._running.values() for task in effects.values()]
        await end(tasks)
        await asyncio.gather(*self._recording, return_exceptions=True)

    def _on_commit(self, records: Sequence[Recorded], states: Mapping[str, Any]) -> None:
        causes = {record.stream: record.id for record in records}
        for stream, state in states.items():
            if not self._performed.isdisjoint(self._running.get(stream, {}).values()):
                self._stop_within_commit(stream, records)
            self._adjust(stream, state, causes.get(stream, ""))
            if state is None:
                self._states.pop(stream, None)
            else:
                self._states[stream] = state

    def _stop_within_commit(self, stream: str, records: Sequence[Recorded]) -> None:
        """Stop the effects that `todo` does not return after some event of a commit.

        One commit may contain the result of an effect and the next request for the same effect. Then `todo` returns the
        effect before and after the commit, but the running effect must end and start anew.
        """
        state = self._states.get(stream)
        for record in [record for record in records if record.stream == stream][:-1]:
            state = self._domain.evolve(state, record.event)
            self._adjust(stream, state, cause="", start=False)

    def _adjust(self, stream: str, state: S | None, cause: str, *, start: bool = True) -> None:
        """Stop the effects of a stream that `todo` does not return, and start the effects that it returns."""
        try:
            # a dict is used as a set, because it keeps the order of `todo`: the same log always starts the same effects
            required = dict.fromkeys(self._domain.todo(state)) if state is not None else {}
        except Exception:  # a bug that affects one stream must not affect the others
            logger.error("todo failed unexpectedly", stream=stream, exc_info=True)
            return
        running = self._running.get(stream, {})
        for effect in [effect for effect in running if effect not in required]:
            # a result that is just being recorded is not lost, because the recording is a task of its own
            task = running.pop(effect)
            self._performed.discard(task)
            task.cancel()
        for effect in [effect for effect in required if effect not in running] if start else ():
            running[effect] = asyncio.create_task(self._carry_out(effect, cause), name=f"{stream} {effect}")
        if running:
            self._running[stream] = running
        else:
            self._running.pop(stream, None)

    async def _carry_out(self, effect: Effect, cause: str) -> None:
        """Perform the effect until it succeeds, then record its result.

        The finished task stays in `_running` while `todo` returns the effect, so the effect does not start again.
        """
        delay = _FIRST_RETRY
        while True:
            current_call.set(calls.fresh(self._writer.node, cause))
            try:
                commands = list(await self._outside.perform(effect))
                self._performed.add(_this_task())
                # recording is a task of its own, because it may end this effect, which cancels the effect's task
                recording = asyncio.create_task(self._record(commands, cause))
                self._recording.add(recording)
                recording.add_done_callback(self._recording.discard)
                await asyncio.shield(recording)
            except AimaError as error:
                logger.warning("effect failed; trying again", effect=type(effect).__name__, error=str(error))
            except Exception:
                logger.error("effect failed unexpectedly; trying again", effect=type(effect).__name__, exc_info=True)
            else:
                return
            self._performed.discard(_this_task())
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LAST_RETRY)

    async def _record(self, commands: Sequence[Command[Any]], cause: str) -> None:
        for command in commands:
            await self._writer.run(command, calls.fresh(self._writer.node, cause))


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel the tasks and wait until they have ended.

    Cancels repeatedly, because nats-py uses `asyncio.wait_for`, which can lose a cancellation in Python 3.11.
    """
    running = every_task = set(tasks)
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=_CANCEL_AGAIN)
    await asyncio.gather(*every_task, return_exceptions=True)  # the tasks have logged their errors themselves
