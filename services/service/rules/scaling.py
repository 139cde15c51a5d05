"""Decides how many replicas a service may have, and how many replicas its load needs.

The functions are pure. A Scaler only keeps samples. The caller passes the time and the load.

If two samples in a row need more replicas, the service scales up to the smaller of the two numbers. If all samples of
the calm period need fewer replicas, the service scales down to the largest of the numbers. So a load that varies around
a threshold changes nothing.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from services.service import units as u

_UP_SAMPLES = 2  # samples in a row that must need more replicas before the service scales up
_SLEEPS_AFTER = 300.0  # default of idle_timeout, in seconds, for a service with autoscale.min 0


class Bounds(NamedTuple):
    """The bounds of an autoscaled service: minimum and maximum replicas, and the target of requests per replica."""

    least: int
    most: int
    target: float


def bounds_of(about: u.ServiceCreated) -> Bounds | None:
    """Return the bounds of a service, or None if it is not autoscaled."""
    autoscale = about.autoscale
    return Bounds(int(autoscale["min"]), int(autoscale["max"]), autoscale["target_concurrency"]) if autoscale else None


def within(about: u.ServiceCreated, replicas: int) -> int:
    """Limit a number of replicas to the bounds of the service. A service that is awake has at least one replica."""
    bounds = bounds_of(about)
    return max(1, bounds.least, min(bounds.most, replicas)) if bounds else max(1, replicas)


def sleeps_after(about: u.ServiceCreated) -> float:
    """Return the seconds without a request until a service goes to sleep; 0 means never."""
    bounds = bounds_of(about)
    return about.idle_timeout or (_SLEEPS_AFTER if bounds and bounds.least == 0 else 0.0)


def needed(requests: int, bounds: Bounds) -> int:
    """Return how many replicas this many requests need. At least one, because autoscaling puts no service to sleep."""
    return max(1, bounds.least, min(bounds.most, math.ceil(requests / bounds.target)))


class Scaler:
    """The recent load samples of one service. Scales down only if fewer replicas were enough for `calm` seconds."""

    def __init__(self, calm: float) -> None:
        self._calm = calm
        self._samples: deque[tuple[float, int]] = deque()  # time, replicas needed
        self._since = math.inf  # time of the first sample since the last change, even if it is no longer in _samples

    def sample(self, at: float, requests: int, replicas: int, bounds: Bounds) -> int:
        """Add a load sample and return the new number of replicas.

        `at` is the time of the sample in seconds. `replicas` is the current number of replicas.
        """
        self._since = min(self._since, at)
        self._samples.append((at, needed(requests, bounds)))
        while len(self._samples) > _UP_SAMPLES and self._samples[0][0] < at - self._calm:
            self._samples.popleft()
        latest = [number for _, number in self._samples][-_UP_SAMPLES:]
        if len(latest) == _UP_SAMPLES and min(latest) > replicas:
            self._reset()
            return min(latest)
        highest = max(number for _, number in self._samples)
        if highest < replicas and at - self._since >= self._calm:
            self._reset()
            return highest
        return replicas

    def _reset(self) -> None:
        """Drop all samples after a change, because the load before the change does not predict the later load."""
        self._samples.clear()
        self._since = math.inf
