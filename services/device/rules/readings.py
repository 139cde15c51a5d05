"""The short memory of readings: samples of each device, and which limits they exceed. No clock and no I/O of its own.

Samples are no events: there are far too many of them, and nobody asks next year how warm it was at noon.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from services.device import units as u
from services.device.drivers import ProbedDevice, Sample
from services.device.rules.assessment import LIMITS, Alert, Limit, alerts, assess


class Reading(NamedTuple):
    """What a new sample means."""

    status: u.Status
    issues: list[str]
    alerts: list[Alert]


class Watch:
    """One device under watch."""

    def __init__(self, history: int, status: u.Status) -> None:
        """Begin with the status that the log knows, so that a restart is no second crossing."""
        self.samples: deque[Sample] = deque(maxlen=history)
        self._raised = exceeded_before(status)

    def take(self, found: ProbedDevice, sample: Sample) -> Reading:
        """Keep the sample and tell what it means."""
        new, self._raised = alerts(sample, self._raised)
        self.samples.append(sample)
        return Reading(*self.health(found), new)

    def health(self, found: ProbedDevice) -> tuple[u.Status, list[str]]:
        """Return how the device does by its newest sample."""
        return assess(found, self.samples[-1] if self.samples else None, self._raised)


def exceeded_before(status: u.Status) -> frozenset[Limit]:
    """Return the limits that a device of that status may have exceeded already."""
    severe = {"warning": ("warning",), "critical": ("warning", "critical")}.get(status, ())
    return frozenset(limit for limit in LIMITS if limit.status in severe)
