"""The queues of requests that have no replica yet, in the order of their arrival.

The queues are only in memory: a queued request has not started, so the log does not contain it. This module decides
which request has its turn. The request's own task then tries to get a replica.
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
from services.inference.units import OBSTACLES

T = TypeVar("T")
Services = frozenset[str]
Place = Callable[[], Awaitable[T]]

QUEUE_FULL = "QUEUE_FULL"
_MAX_RETRY_AFTER = 600  # seconds; the highest `retry_after`
_THROUGHPUT_WINDOW = 60.0  # seconds over which the throughput is measured
_MAX_ENDS = 200  # the last ends of requests that are stored for each service, to compute the throughput

_number = attrgetter("number")


class Waiter:
    """A queued request.

    With `passing`, the request is a retry after a failure and avoids the failed replica. Later requests may overtake it
    and use that replica.
    """

    def __init__(self, number: int, passing: bool) -> None:
        self.number = number
        self.passing = passing
        self.turn = asyncio.Event()
        self.error: AimaError | None = None


class Admission:
    """The queues of waiting requests. There is one queue for each set of services that can serve the same requests.

    `limit` is the maximum number of requests per service. A queue for two services may have twice as many requests.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._queues: dict[Services, list[Waiter]] = {}
        self._numbers = itertools.count()
        self._ends: dict[str, deque[float]] = {}

    def number(self) -> int:
        """Return a number for a new request, higher than all earlier numbers. The lowest number has the first turn."""
        return next(self._numbers)

    def queued(self, service_id: str) -> int:
        """Return how many requests wait for a service, including requests that another service can also serve."""
        return sum(len(queue) for services, queue in self._queues.items() if service_id in services)

    def longest(self, services: Services) -> int:
        """Return how many requests wait for the service with the most waiting requests."""
        return max((self.queued(ident) for ident in services), default=0)

    def ahead(self, services: Services) -> bool:
        """Whether a new request for these services would overtake a queued request."""
        return any(not waiter.passing for other, queue in self._queues.items() if other & services for waiter in queue)

    async def admit(
        self,
        services: Services,
        place: Place[T],
        number: int,
        worth_waiting: Sequence[str] = OBSTACLES,
        *,
        again: bool = False,
    ) -> T:
        """Call `place` at each turn of the request until `place` succeeds. Returns the result of `place`.

        The first turn comes at once if the request overtakes no queued request, or with `again`. `again` means that the
        request already had a turn and failed at its replica. If `place` raises Unavailable with a reason in
        `worth_waiting`, the request waits for its next turn. Raises any other error of `place`, and Unavailable
        (QUEUE_FULL) if the queue is full for a new request.
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
                self.wake()  # only requests in other queues come first; the first request of each queue tries in order
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
        """Fail each request that waits for this service and for no other service for which `other` is true."""
        for services, queue in self._queues.items():
            if _needs(services, service_id, other):
                for waiter in queue:
                    waiter.error = from_body(error.body())  # a copy for each request: raising an exception changes it
                    waiter.turn.set()

    def needs(self, service_id: str, other: Callable[[str], bool]) -> bool:
        """Whether a request waits for this service and for no other service for which `other` is true."""
        return any(_needs(services, service_id, other) for services in self._queues)

    def ended(self, service_id: str) -> None:
        """Store that a request has just ended. `retry_after` uses these times."""
        self._ends.setdefault(service_id, deque(maxlen=_MAX_ENDS)).append(time.monotonic())

    def forget(self, service_id: str) -> None:
        """Drop the stored times of a deleted service."""
        self._ends.pop(service_id, None)

    def retry_after(self, services: Services) -> int:
        """Estimate in how many seconds the queue is empty, from the throughput of the last minute. Returns 1 to 600."""
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
                f"the queue of service {' and '.join(sorted(services))} is full: {len(queue)} requests wait, and"
                " inference.queue allows no more",
                reason=QUEUE_FULL,
            )
        self._queues[services] = queue
        insort(queue, waiter, key=_number)
        try:
            yield waiter
        finally:  # wakes the next request even after an error, because it has not tried since the last change
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
