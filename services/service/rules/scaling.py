"""How many replicas a service may have, and how many its load asks for, without flapping.

Pure but for what a Scaler remembers: whoever looks says when, and what was seen.

Up after two looks in a row that ask for more, to the smaller of the two numbers; down only after everything that was
seen for a while asked for fewer, to the largest of these. Between the two lies the hysteresis: a load that wavers
around a bound changes nothing.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from services.service import units as u

_UP_LOOKS = 2  # looks in a row that have to ask for more
_SLEEPS_AFTER = 300.0  # seconds without a request, for a service with `min` 0 and no idle_timeout of its own


class Bounds(NamedTuple):
    """Of an autoscaled service: least and most replicas, and requests that each shall have under way."""

    least: int
    most: int
    target: float


def bounds_of(about: u.ServiceCreated) -> Bounds | None:
    """Return the bounds of a service, None when its number does not follow the load."""
    given = about.autoscale
    return Bounds(int(given["min"]), int(given["max"]), given["target_concurrency"]) if given else None


def within(about: u.ServiceCreated, wanted: int) -> int:
    """Return how many replicas a service that is awake has, of those wanted: one at least, within its own bounds."""
    bounds = bounds_of(about)
    return max(1, bounds.least, min(bounds.most, wanted)) if bounds else max(1, wanted)


def sleeps_after(about: u.ServiceCreated) -> float:
    """Return the seconds without a request after which a service goes to sleep, 0 for never."""
    bounds = bounds_of(about)
    return about.idle_timeout or (_SLEEPS_AFTER if bounds and bounds.least == 0 else 0.0)


def asked_for(requests: int, bounds: Bounds) -> int:
    """Return how many replicas so many requests, under way or waiting, ask for; one at least: sleep is not scaling."""
    return max(1, bounds.least, min(bounds.most, math.ceil(requests / bounds.target)))


class Scaler:
    """What was seen of one service's load. `calm` in seconds: for how long fewer must suffice before it shrinks."""

    def __init__(self, calm: float) -> None:
        self._calm = calm
        self._seen: deque[tuple[float, int]] = deque()
        self._since = math.inf  # when the first look was that is still remembered, or forgotten on purpose

    def look(self, at: float, requests: int, replicas: int, bounds: Bounds) -> int:
        """Take in a look at `at` (seconds) and return how many of the `replicas` there shall be."""
        wanted = asked_for(requests, bounds)
        self._since = min(self._since, at)
        self._seen.append((at, wanted))
        while len(self._seen) > _UP_LOOKS and self._seen[0][0] < at - self._calm:
            self._seen.popleft()
        last = [number for _, number in self._seen][-_UP_LOOKS:]
        if len(last) == _UP_LOOKS and min(last) > replicas:
            self._forget()
            return min(last)
        highest = max(number for _, number in self._seen)
        if highest < replicas and at - self._since >= self._calm:
            self._forget()
            return highest
        return replicas

    def _forget(self) -> None:
        """Begin anew after a change: what was seen before it says nothing about what it has led to."""
        self._seen.clear()
        self._since = math.inf
