"""Who waits for which services: lines of requests that cannot be placed yet, in the order of their coming.

In memory only: a request that waits has not begun, so the log says nothing of it. A waiter tries for itself, when it
is woken; here is only decided whose turn it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from math import ceil
from operator import attrgetter
from typing import TypeVar

from aima_core.errors import AimaError, Unavailable, from_body
from services.inference.rules.routing import BUSY, LOADING

T = TypeVar("T")
Services = frozenset[str]
Place = Callable[[], Awaitable[T]]

QUEUE_FULL = "QUEUE_FULL"
_LONGEST = 600  # seconds; nobody is told to come back later than that
_LOOKED_AT = 60.0  # seconds back for which the throughput is estimated
_ENDS = 200  # ends of requests that are remembered for that, of each service

_number = attrgetter("number")


class Waiter:
    """One request in a line. `passing`: it tries again after a failure, is choosy for that, and lets others pass."""

    def __init__(self, number: int, passing: bool) -> None:
        self.number = number
        self.passing = passing
        self.turn = asyncio.Event()
        self.error: AimaError | None = None


class Admission:
    """The lines, one for each set of services that requests mean. `limit`: waiters for each service of a line."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lines: dict[Services, list[Waiter]] = {}
        self._numbers = itertools.count()
        self._ends: dict[str, deque[float]] = {}

    def number(self) -> int:
        """Return the place of a newcomer, behind everybody who has come before."""
        return next(self._numbers)

    def queued(self, service_id: str) -> int:
        """Return how many wait for a service, be it for others too."""
        return sum(len(line) for services, line in self._lines.items() if service_id in services)

    def longest(self, services: Services) -> int:
        """Return how many wait for that of these services for which the most do."""
        return max((self.queued(ident) for ident in services), default=0)

    def ahead(self, services: Services) -> bool:
        """Whether anybody waits whom a newcomer to one of these services would overtake."""
        return any(not waiter.passing for other, line in self._lines.items() if other & services for waiter in line)

    async def admit(
        self,
        services: Services,
        place: Place[T],
        number: int,
        worth_it: Sequence[str] = (BUSY, LOADING),
        *,
        again: bool = False,
    ) -> T:
        """Return what `place` does as soon as it is the request's turn and there is room; at once if nobody waits.

        `place` raises Unavailable with a reason that is `worth_it` to wait; whatever else it raises ends the waiting.
        Raises Unavailable with QUEUE_FULL for a newcomer that finds the line full. Who tries `again` has its old place.
        """
        tried = again or not self.ahead(services)
        if tried:
            try:
                return await place()
            except Unavailable as refusal:
                if refusal.reason not in worth_it:
                    raise
        with self._waiting(services, Waiter(number, again)) as waiter:
            if not tried and self._lines[services][0] is waiter:
                self.wake()  # only others of other lines were before it: they first, then it
            while True:
                await waiter.turn.wait()
                waiter.turn.clear()
                if waiter.error:
                    raise waiter.error
                try:
                    return await place()
                except Unavailable as refusal:
                    if refusal.reason not in worth_it:
                        raise

    def wake(self) -> None:
        """Let the first of each line try: something has changed."""
        for services in sorted(self._lines, key=lambda services: self._lines[services][0].number):
            self._wake(services)

    def refuse(self, service_id: str, error: AimaError, other: Callable[[str], bool]) -> None:
        """End the waiting of everybody who waits for a service and for no `other` that may still take them."""
        for services, line in self._lines.items():
            if _needs(services, service_id, other):
                for waiter in line:
                    waiter.error = from_body(error.body())  # one for each: raising marks an exception
                    waiter.turn.set()

    def needs(self, service_id: str, other: Callable[[str], bool]) -> bool:
        """Whether anybody waits for a service and for no `other`."""
        return any(_needs(services, service_id, other) for services in self._lines)

    def ended(self, service_id: str) -> None:
        """Note that a request has come to its end: that is what those who wait hope for."""
        self._ends.setdefault(service_id, deque(maxlen=_ENDS)).append(time.monotonic())

    def forget(self, service_id: str) -> None:
        """Let go of what was noted of a service that is no more."""
        self._ends.pop(service_id, None)

    def retry_after(self, services: Services) -> int:
        """Return in how many seconds those who wait now will be served, as far as the last minute tells; at least 1."""
        now = time.monotonic()
        ends = [end for ident in services for end in self._ends.get(ident, ()) if end > now - _LOOKED_AT]
        if not ends:
            return 1
        rate = len(ends) / max(now - min(ends), 1.0)
        return min(max(ceil(self.longest(services) / rate), 1), _LONGEST)

    @contextlib.contextmanager
    def _waiting(self, services: Services, waiter: Waiter) -> Iterator[Waiter]:
        line = self._lines.get(services, [])
        if not waiter.passing and len(line) >= self._limit * len(services):
            raise Unavailable("too many requests wait already", reason=QUEUE_FULL)
        self._lines[services] = line
        insort(line, waiter, key=_number)
        try:
            yield waiter
        finally:  # however it ends: whoever is first now has not tried since something changed
            del line[bisect_left(line, waiter.number, key=_number)]
            if line:
                self._wake(services)
            else:
                del self._lines[services]

    def _wake(self, services: Services) -> None:
        for waiter in self._lines[services]:
            waiter.turn.set()
            if not waiter.passing:
                return


def _needs(services: Services, service_id: str, other: Callable[[str], bool]) -> bool:
    return service_id in services and not any(other(ident) for ident in services - {service_id})
