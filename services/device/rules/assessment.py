"""Judges the health of a device from a sample. Pure."""

from __future__ import annotations

from typing import Literal, NamedTuple

from services.device.drivers import ProbedDevice, Sample

Status = Literal["healthy", "warning", "critical", "unknown"]
Metric = Literal["temperature", "memory"]


class Limit(NamedTuple):
    """A threshold for a reading. A reading above the threshold is a problem."""

    metric: Metric
    threshold: float
    status: Status
    hysteresis: float
    """The distance below the threshold at which the problem ends. It prevents many alerts for a varying reading."""


class Alert(NamedTuple):
    """An alert about a reading above its threshold. The units are those of `LIMITS`."""

    metric: Metric
    value: float
    threshold: float


LIMITS = (
    Limit("temperature", 80, "warning", 2),  # degrees Celsius; GPUs throttle at about 83
    Limit("temperature", 90, "critical", 2),
    Limit("memory", 95, "warning", 1),  # percent in use
)
UNITS = {"temperature": " °C", "memory": " % in use"}
NOTHING_RAISED: frozenset[Limit] = frozenset()


def assess(
    device: ProbedDevice, sample: Sample | None, raised: frozenset[Limit] = NOTHING_RAISED
) -> tuple[Status, list[str]]:
    """Return the device's status and its problems in words.

    `raised` has the limits that count as exceeded so far; `alerts` returns them. By default, there are none.
    """
    if sample is None:
        return "unknown", [f"{device.id} has not been sampled yet"]
    if sample.lost:
        return "critical", [f"{device.name} is lost: it no longer answers; reset it or restart the machine"]
    readings = {limit.metric: _reading(limit.metric, sample) for limit in LIMITS}
    if all(value is None for value in readings.values()):
        return "unknown", [f"{device.name} reports neither its temperature nor its memory"]
    exceeded: dict[Metric, Limit] = {}  # the highest exceeded limit of each metric
    for limit in LIMITS:
        value = readings[limit.metric]
        if value is not None and _above(limit, value, raised):
            exceeded[limit.metric] = limit
    issues = [_words(limit, readings[limit.metric]) for limit in exceeded.values()]
    worst: Status = "healthy"
    if exceeded:
        worst = "critical" if any(limit.status == "critical" for limit in exceeded.values()) else "warning"
    return worst, issues


def alerts(sample: Sample, raised: frozenset[Limit]) -> tuple[list[Alert], frozenset[Limit]]:
    """Return the alerts for newly exceeded limits, and all limits that now count as exceeded.

    Pass `NOTHING_RAISED` in the first call, and the returned limits in each later call. A missing reading changes
    nothing.
    """
    new: list[Alert] = []
    still = set(raised)
    for limit in LIMITS:
        value = _reading(limit.metric, sample)
        if value is None:
            continue
        if not _above(limit, value, raised):
            still.discard(limit)
        elif limit not in raised:
            still.add(limit)
            new.append(Alert(limit.metric, value, limit.threshold))
    return new, frozenset(still)


def _above(limit: Limit, value: float, raised: frozenset[Limit]) -> bool:
    return value > limit.threshold - (limit.hysteresis if limit in raised else 0)


def _reading(metric: Metric, sample: Sample) -> float | None:
    match metric:
        case "temperature":
            return sample.temperature
        case "memory" if sample.memory_used is None or sample.memory_total <= 0:
            return None
        case "memory":
            return 100 * sample.memory_used / sample.memory_total


def _words(limit: Limit, value: float | None) -> str:
    unit = UNITS[limit.metric]
    return f"{limit.metric} {value:.4g}{unit}, above {limit.threshold:g}"
