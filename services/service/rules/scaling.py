"""Decides how many replicas a service may have and how many its load needs, without flapping.

Pure except for the memory of a Scaler, whose caller passes the time and the load.

It scales up after two samples in a row need more replicas, to the smaller of the two numbers. It scales down only after
all samples of the calm period need fewer, to the largest of them. Because of this hysteresis a load that wavers around
a threshold changes nothing.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from services.service import units as u

_UP_SAMPLES = 2  # samples in a row that must need more replicas before it scales up
_SLEEPS_AFTER = 300.0  # seconds without a request, for a service with `min` 0 and no idle_timeout of its own


class Bounds(NamedTuple):
    """Bounds of an autoscaled service: least and most replicas, and target of requests under way per replica."""

    least: int
    most: int
    target: float


def bounds_of(about: u.ServiceCreated) -> Bounds | None:
    """Return the bounds of a service; None if it is not autoscaled."""
    autoscale = about.autoscale
    return Bounds(int(autoscale["min"]), int(autoscale["max"]), autoscale["target_concurrency"]) if autoscale else None


def within(about: u.ServiceCreated, replicas: int) -> int:
    """Limit a number of replicas to what a service that is awake may have: at least one, within its bounds."""
    bounds = bounds_of(about)
    return max(1, bounds.least, min(bounds.most, replicas)) if bounds else max(1, replicas)


def sleeps_after(about: u.ServiceCreated) -> float:
    """Return the seconds without a request after which a service goes to sleep; 0 for never."""
    bounds = bounds_of(about)
    return about.idle_timeout or (_SLEEPS_AFTER if bounds and bounds.least == 0 else 0.0)


def needed(requests: int, bounds: Bounds) -> int:
    """Return the replicas that this many requests, under way or waiting, need; at least one: sleep is not scaling."""
    return max(1, bounds.least, min(bounds.most, math.ceil(requests / bounds.target)))


class Scaler:
    """Recent load samples of one service. `calm`: seconds that fewer replicas must suffice before it scales down."""

    def __init__(self, calm: float) -> None:
        self._calm = calm
        self._samples: deque[tuple[float, int]] = deque()  # time, replicas needed
        self._since = math.inf  # time of the first sample since the last change, even if it was dropped since

    def sample(self, at: float, requests: int, replicas: int, bounds: Bounds) -> int:
        """Add a sample taken at `at` (seconds); return the number of replicas that should follow `replicas`."""
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
        """Drop all samples after a change: the load before the change does not predict the load after it."""
        self._samples.clear()
        self._since = math.inf
