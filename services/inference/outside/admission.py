"""Queues of the requests that have no replica yet, in the order of their arrival.

In memory only: a queued request has not started, so the log does not contain it. This module decides whose turn it
is; a waiter that is woken tries by itself to get a replica.
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
_MAX_RETRY_AFTER = 600  # seconds
_THROUGHPUT_WINDOW = 60.0  # seconds from which the throughput is estimated
_MAX_ENDS = 200  # ends of requests remembered for the estimate, for each service

_number = attrgetter("number")


class Waiter:
    """A queued request. `passing`: it retries after a failure and excludes a replica, so later requests may pass it."""

    def __init__(self, number: int, passing: bool) -> None:
        self.number = number
        self.passing = passing
        self.turn = asyncio.Event()
        self.error: AimaError | None = None


class Admission:
    """The queues, one for each set of services that can serve a request. `limit`: waiters per service of a queue."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._queues: dict[Services, list[Waiter]] = {}
        self._numbers = itertools.count()
        self._ends: dict[str, deque[float]] = {}

    def number(self) -> int:
        """Return the number of a new request, higher than all before; lower numbers go first."""
        return next(self._numbers)

    def queued(self, service_id: str) -> int:
        """Return the number of requests that wait for a service, including those that other services can serve too."""
        return sum(len(queue) for services, queue in self._queues.items() if service_id in services)

    def longest(self, services: Services) -> int:
        """Return the number of requests that wait for the busiest of these services."""
        return max((self.queued(ident) for ident in services), default=0)

    def ahead(self, services: Services) -> bool:
        """Whether a new request for these services would overtake a queued one."""
        return any(not waiter.passing for other, queue in self._queues.items() if other & services for waiter in queue)

    async def admit(
        self,
        services: Services,
        place: Place[T],
        number: int,
        worth_waiting: Sequence[str] = (BUSY, LOADING),
        *,
        again: bool = False,
    ) -> T:
        """Call `place` when it is the request's turn, at once if no other waits, until it succeeds; return its result.

        If `place` raises Unavailable with a reason in `worth_waiting`, the request waits; any other error is raised.
        Raises Unavailable with QUEUE_FULL if a new request finds the queue full. `again`: the request had its turn
        before and keeps its number.
        """
        tried = again or not self.ahead(services)
        if tried:
            try:
                return await place()
            except Unavailable as refusal:
                if refusal.reason not in worth_waiting:
                    raise
        with self._waiting(services, Waiter(number, again)) as waiter:
            if not tried and self._queues[services][0] is waiter:
                self.wake()  # only requests in other queues were before it: they try first, then this one
            while True:
                await waiter.turn.wait()
                waiter.turn.clear()
                if waiter.error:
                    raise waiter.error
                try:
                    return await place()
                except Unavailable as refusal:
                    if refusal.reason not in worth_waiting:
                        raise

    def wake(self) -> None:
        """Let the first request of each queue try again."""
        for services in sorted(self._queues, key=lambda services: self._queues[services][0].number):
            self._wake(services)

    def refuse(self, service_id: str, error: AimaError, other: Callable[[str], bool]) -> None:
        """Fail the requests that wait for a service and have no `other` service that may take them."""
        for services, queue in self._queues.items():
            if _needs(services, service_id, other):
                for waiter in queue:
                    waiter.error = from_body(error.body())  # one for each: raising marks an exception
                    waiter.turn.set()

    def needs(self, service_id: str, other: Callable[[str], bool]) -> bool:
        """Whether a request waits for a service and has no `other` service that may take it."""
        return any(_needs(services, service_id, other) for services in self._queues)

    def ended(self, service_id: str) -> None:
        """Note the end of a request, for the estimate of `retry_after`."""
        self._ends.setdefault(service_id, deque(maxlen=_MAX_ENDS)).append(time.monotonic())

    def forget(self, service_id: str) -> None:
        """Drop the notes on a deleted service."""
        self._ends.pop(service_id, None)

    def retry_after(self, services: Services) -> int:
        """Estimate from the last minute's throughput how many seconds the queued requests take; from 1 to 600."""
        now = time.monotonic()
        ends = [end for ident in services for end in self._ends.get(ident, ()) if end > now - _THROUGHPUT_WINDOW]
        if not ends:
            return 1
        rate = len(ends) / max(now - min(ends), 1.0)
        return min(max(ceil(self.longest(services) / rate), 1), _MAX_RETRY_AFTER)

    @contextlib.contextmanager
    def _waiting(self, services: Services, waiter: Waiter) -> Iterator[Waiter]:
        queue = self._queues.get(services, [])
        if not waiter.passing and len(queue) >= self._limit * len(services):
            raise Unavailable(
                f"the queue of service {' and '.join(sorted(services))} is full: {len(queue)} requests wait, the most"
                " that inference.queue allows",
                reason=QUEUE_FULL,
            )
        self._queues[services] = queue
        insort(queue, waiter, key=_number)
        try:
            yield waiter
        finally:  # in any case: the request that is first now has not tried since the last change
            del queue[bisect_left(queue, waiter.number, key=_number)]
            if queue:
                self._wake(services)
            else:
                del self._queues[services]

    def _wake(self, services: Services) -> None:
        for waiter in self._queues[services]:
            waiter.turn.set()
            if not waiter.passing:
                return


def _needs(services: Services, service_id: str, other: Callable[[str], bool]) -> bool:
    return service_id in services and not any(other(ident) for ident in services - {service_id})
