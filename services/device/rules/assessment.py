"""When a device is in trouble. Pure: readings in, judgement out."""

from __future__ import annotations

from typing import Literal, NamedTuple

from services.device.drivers import ProbedDevice, Sample

Status = Literal["healthy", "warning", "critical", "unknown"]
Metric = Literal["temperature", "memory"]


class Limit(NamedTuple):
    """A value above which something is wrong, and how far below it all is well again."""

    metric: Metric
    threshold: float
    status: Status
    hysteresis: float
    """A reading that wavers around the threshold is one crossing, not many."""


class Alert(NamedTuple):
    """A reading that has gone above a threshold just now; in the units of `LIMITS`."""

    metric: Metric
    value: float
    threshold: float


LIMITS = (
    Limit("temperature", 80, "warning", 2),  # degrees Celsius; GPUs throttle from about 83 on
    Limit("temperature", 90, "critical", 2),
    Limit("memory", 95, "warning", 1),  # percent in use
)
UNITS = {"temperature": " °C", "memory": " % in use"}
NOTHING_RAISED: frozenset[Limit] = frozenset()


def assess(
    found: ProbedDevice, sample: Sample | None, raised: frozenset[Limit] = NOTHING_RAISED
) -> tuple[Status, list[str]]:
    """Return the device's status and what is wrong with it, in words.

    `raised` holds the limits that `alerts` regards as still exceeded; without it the sample alone counts.
    """
    if sample is None:
        return "unknown", [f"{found.id} has not been sampled yet"]
    if sample.lost:
        return "critical", [f"{found.name} is lost: it does not answer any more"]
    readings = {limit.metric: _reading(limit.metric, sample) for limit in LIMITS}
    if all(value is None for value in readings.values()):
        return "unknown", [f"{found.name} tells neither its temperature nor its memory"]
    exceeded: dict[Metric, Limit] = {}  # of each metric the highest
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
    """Return the limits that are crossed for the first time, and those that count as exceeded from here on.

    Start with `NOTHING_RAISED` and hand on what comes back. A reading that is missing changes nothing.
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
