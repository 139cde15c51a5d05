"""Recommends how to serve a model. Uses speeds that were measured on this hardware, or else a roofline estimate. Pure.

Generating a token reads every weight and the request's key-value cache once. So the tokens per second of one request
cannot exceed the memory bandwidth divided by the bytes of weights and cache. Requests that run together share one
reading of the weights. On a GPU, sharing multiplies the tokens per second until arithmetic becomes the limit. On a CPU,
arithmetic is the limit from the start.

Sources: S. Williams et al., "Roofline", CACM 2009; for decoding: R. Pope et al., "Efficiently Scaling Transformer
Inference", 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from services.device.units import DeviceItem
from services.inference.units import Speed
from services.model.units import ModelView
from services.service import units as u
from services.service.rules.resource_table import RESOURCE_TABLE
from services.service.rules.selection import Selection

_FILLED = 0.5  # average part of its context that a request fills during its answer
_GAIN = {
    "gpu": 0.6,
    "cpu": 0.1,
}  # speed that each further concurrent request adds, as a fraction of the speed of a single request
_ENOUGH = 3  # minimum number of requests for a measured speed


class Expected(NamedTuple):
    """Expected tokens per second. `together` is the sum over concurrent requests. `alone` is for one request alone."""

    together: float
    alone: float
    basis: Literal["measured", "roofline"]
    reason: str


class Plan(NamedTuple):
    """A candidate: a resource class, and the engine and device for a replica of this class."""

    resource_class: u.ResourceClass
    choice: Selection


def expect(model: ModelView, choice: Selection, devices: Sequence[DeviceItem], speeds: Sequence[Speed]) -> Expected:
    """Return the expected speed of a replica: 0 if no speed was measured and the device's bandwidth is unknown."""
    same = [
        speed
        for speed in speeds
        if (speed.engine, speed.device) == (choice.engine.name, choice.device) and speed.requests >= _ENOUGH
    ]
    return _measured(choice, same) if same else _roofline(model, choice, devices)


def _measured(choice: Selection, speeds: Sequence[Speed]) -> Expected:
    """Return the measured speed. Ignores measurements with more concurrent requests than this replica has slots.

    If all speeds were measured with another number of slots, uses them, and says so in the reason. If all speeds were
    measured with single requests, estimates the speed of concurrent requests.
    """
    slots = int(choice.config.get("slots") or 1)
    same_slots = [speed for speed in speeds if speed.slots == slots]
    least = min(speed.concurrency for speed in same_slots or speeds)
    alone = max(speed.tokens_per_second for speed in same_slots or speeds if speed.concurrency == least)
    fully_used = any(speed.concurrency == slots for speed in same_slots)
    usable = [speed for speed in (same_slots if fully_used else speeds) if speed.concurrency <= slots]
    together = max((speed.concurrency * speed.tokens_per_second for speed in usable), default=alone)
    if slots > 1 and all(speed.concurrency == 1 for speed in speeds):
        together = max(together, alone * (1 + _GAIN.get(choice.device, 0.0) * (slots - 1)))
    count = sum(speed.requests for speed in same_slots or speeds)
    how = "" if same_slots else f" with a number of slots other than {slots}"
    return Expected(round(together, 1), round(alone, 1), "measured", f"measured on {count} requests here{how}")


def _roofline(model: ModelView, choice: Selection, devices: Sequence[DeviceItem]) -> Expected:
    device = next((item for item in devices if item.type == choice.device and item.memory_bandwidth), None)
    if device is None or not device.memory_bandwidth:
        return Expected(0.0, 0.0, "roofline", f"the memory bandwidth of the {choice.device} is unknown")
    context = int(choice.config.get("context_length") or RESOURCE_TABLE["small"].context_length)
    per_token = model.requirements.weights + model.requirements.kv_bytes_per_token * context * _FILLED
    alone = device.memory_bandwidth / max(per_token, 1.0)
    slots = int(choice.config.get("slots") or 1)
    together = alone * (1 + _GAIN.get(choice.device, 0.0) * (slots - 1))
    basis = f"{device.memory_bandwidth / 1e9:.1f} GB/s of memory bandwidth, {per_token / 1e6:.0f} MB read per token"
    return Expected(round(together, 1), round(alone, 1), "roofline", f"estimated: {basis}")


def recommend(hint: u.Hint, plans: Sequence[tuple[Plan, Expected]], room: int, gpus: int) -> u.Recommendation:
    """Return the best plan for the hint. `room` is the free main memory in bytes; `gpus` is the number of GPUs.

    Among plans with the same expected speed, the plan with more cores wins, then the plan with less memory. `plans`
    must not be empty.
    """
    fitting = [(plan, speed) for plan, speed in plans if plan.choice.memory <= room] or list(plans)

    def worth(candidate: tuple[Plan, Expected]) -> tuple[float, float, float]:
        plan, speed = candidate
        cores, memory = RESOURCE_TABLE[plan.resource_class].cores, plan.choice.memory
        match hint:
            case "latency":
                return speed.alone, cores, -memory
            case "throughput":
                return speed.together, cores, -memory
            case "economy":
                return -memory, speed.together, cores

    plan, speed = max(fitting, key=worth)
    choice = plan.choice
    replicas = gpus if hint == "throughput" and choice.device == "gpu" and gpus else 1
    memory = choice.memory * replicas
    missing = "" if memory <= room else f"; needs {(memory - room) / 2**20:.0f} MiB more than is free now"
    return u.Recommendation(
        resource_class=plan.resource_class,
        replicas=replicas,
        expected_throughput=round(speed.together * replicas, 1),
        expected_per_request=speed.alone,
        engine_type=choice.engine.name,
        device_type=choice.device,
        memory_bytes=memory,
        basis=speed.basis,
        reason=f"{choice.reason}; {plan.resource_class} for {hint}; {speed.reason}{missing}",
    )
