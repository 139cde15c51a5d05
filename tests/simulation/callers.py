"""Whoever asks something of the domains from outside, over the bus, and has to be answered in time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aima_core.bus.client import Client
from aima_core.call import IDEMPOTENCY_KEY
from aima_core.errors import AimaError, InternalError, Timeout, Unavailable
from tests.simulation.bus import Connection

if TYPE_CHECKING:
    from tests.simulation.site import Site

_PATIENCE = 1.0  # seconds beyond its deadline in which every caller is answered
_TRIES, _ENOUGH = 12, 2  # of one key: requests, and answers that are to be the same
_AGAIN = 0.3  # seconds until a caller with a key asks again


class Callers:
    """Asks in tasks of its own."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._client = Client(Connection(site.bus))  # type: ignore[arg-type]  # what nats-py's client is to it
        self.waiting: set[asyncio.Task[None]] = set()

    def ask(self, unit: str, patience: float = 30.0, then: Callable[[Any], None] | None = None, **data: Any) -> None:
        """Ask once, for `patience` seconds; `then` is called with the answer, not with a refusal."""
        self._begin(self._ask(unit, patience, then, data))

    def insist(self, unit: str, patience: float = 5.0, **data: Any) -> None:
        """Ask with a key, again until there is an answer, and once more after that: it must be the same.

        A refusal may be followed by something else: one that has recorded nothing is not kept.
        """
        self._begin(self._insist(unit, patience, data))

    def leave(self, unit: str, after: float, patience: float = 30.0, **data: Any) -> None:
        """Ask for parts and an answer, and go away without a word after some seconds."""
        self._begin(self._leave(unit, after, patience, data))

    def _begin(self, asking: Any) -> None:
        task = self._site.loop.create_task(asking)
        self.waiting.add(task)
        task.add_done_callback(self.waiting.discard)

    async def _ask(self, unit: str, timeout: float, then: Callable[[Any], None] | None, data: dict[str, Any]) -> None:
        self._site.tell("asked:", f"{unit} {data}")
        answer = await self._answer(unit, data, timeout, {})
        if then and not isinstance(answer, AimaError):
            then(answer)

    async def _insist(self, unit: str, timeout: float, data: dict[str, Any]) -> None:
        key = f"key-{self._site.bus.number()}"
        self._site.tell("asked with a key:", f"{unit} {data}")
        answers: list[Any] = []
        for _ in range(_TRIES):
            answer = await self._answer(unit, data, timeout, {IDEMPOTENCY_KEY: key})
            if not isinstance(answer, AimaError) or (answers and type(answer) not in (Unavailable, Timeout)):
                answers.append(answer)
            await asyncio.sleep(_AGAIN)
            if len(answers) == _ENOUGH:
                break
        if any(answer != answers[0] for answer in answers):
            self._site.errors.append(f"{unit} with one key is answered first and last: {answers[0]}, {answers[-1]}")

    async def _leave(self, unit: str, after: float, patience: float, data: dict[str, Any]) -> None:
        self._site.tell(f"asked, for {after:g} s:", f"{unit} {data}")
        with contextlib.suppress(AimaError, TimeoutError):
            async with (
                asyncio.timeout(after),
                contextlib.aclosing(self._client.stream(unit, data, timeout=patience)) as parts,
            ):
                async for _ in parts:
                    pass

    async def _answer(self, unit: str, data: dict[str, Any], timeout: float, headers: dict[str, str]) -> Any:
        """Return the answer or the refusal."""
        begun = self._site.loop.now
        try:
            answer = (await self._client.ask(unit, data, timeout=timeout, headers=headers)).data
        except AimaError as error:
            if isinstance(error, InternalError):
                self._site.errors.append(f"{unit} {data}: {error!r}")
            answer = error
        took = self._site.loop.now - begun
        if took > timeout + _PATIENCE:
            self._site.errors.append(f"{unit} was answered after {took:g} s, asked to take {timeout:g} s at most")
        return answer
