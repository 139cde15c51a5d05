"""Keeps the latest samples of each device, and the limits that the samples exceed. Uses no clock and no I/O.

Samples are not events, because there are too many samples, and old samples are of no use.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from services.device import units as u
from services.device.drivers import ProbedDevice, Sample
from services.device.rules.assessment import LIMITS, Alert, Limit, alerts, assess


class Reading(NamedTuple):
    """The health of a device after a new sample, and the alerts that the sample raises."""

    status: u.Status
    issues: list[str]
    alerts: list[Alert]


class Watch:
    """The samples and exceeded limits of one device."""

    def __init__(self, history: int, status: u.Status) -> None:
        """`status` is the last status in the log. With it, a restarted process does not raise the same alert again."""
        self.samples: deque[Sample] = deque(maxlen=history)
        self._raised = exceeded_at(status)

    def add(self, device: ProbedDevice, sample: Sample) -> Reading:
        """Store a sample. Returns the device's health after the sample, and new alerts."""
        new, self._raised = alerts(sample, self._raised)
        self.samples.append(sample)
        return Reading(*self.health(device), new)

    def health(self, device: ProbedDevice) -> tuple[u.Status, list[str]]:
        """Return the status and the problems of the device in its latest sample."""
        return assess(device, self.samples[-1] if self.samples else None, self._raised)


def exceeded_at(status: u.Status) -> frozenset[Limit]:
    """Return the limits that a device with this status may exceed."""
    severe = {"warning": ("warning",), "critical": ("warning", "critical")}.get(status, ())
    return frozenset(limit for limit in LIMITS if limit.status in severe)
