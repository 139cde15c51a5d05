"""How to serve a model best: what was measured with it on this hardware, or else a roofline estimate. Pure.

A token is made by reading every weight once, so one request cannot be quicker than memory bandwidth divided by the
bytes of the weights and of its key-value cache (S. Williams et al., "Roofline", CACM 2009; for decoding: R. Pope et
al., "Efficiently Scaling Transformer Inference", 2022). Several requests at once share one reading of the weights: on
a GPU that multiplies the tokens per second until its arithmetic is the limit, on a CPU it is the limit from the start.
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

_FILLED = 0.5  # of its context that a request fills on average while it is answered
_GAIN = {"gpu": 0.6, "cpu": 0.1}  # of a request's speed that each further one at once adds to the sum
_ENOUGH = 3  # requests that a measured speed rests on


class Expected(NamedTuple):
    """Tokens per second: of all requests together, of one that is alone; and where that comes from."""

    together: float
    alone: float
    basis: Literal["measured", "roofline"]
    reason: str


class Plan(NamedTuple):
    """A way to serve the model: a resource class and what a replica of it runs on."""

    resource_class: u.ResourceClass
    choice: Selection


def expect(found: ModelView, choice: Selection, devices: Sequence[DeviceItem], speeds: Sequence[Speed]) -> Expected:
    """Return what a replica is expected to do. Nothing is known of a device without a bandwidth: then it is 0."""
    same = [
        speed
        for speed in speeds
        if (speed.engine, speed.device) == (choice.engine.name, choice.device) and speed.requests >= _ENOUGH
    ]
    return _measured(choice, same) if same else _roofline(found, choice, devices)


def _measured(choice: Selection, speeds: Sequence[Speed]) -> Expected:
    """Go by the requests that had no more company than this replica would give them.

    What was measured with other slots counts too, but is said to be; company that was never seen is estimated.
    """
    slots = int(choice.config.get("slots") or 1)
    own = [speed for speed in speeds if speed.slots == slots]
    least = min(speed.concurrency for speed in own or speeds)
    alone = max(speed.tokens_per_second for speed in own or speeds if speed.concurrency == least)
    full = any(speed.concurrency == slots for speed in own)
    seen = [speed for speed in (own if full else speeds) if speed.concurrency <= slots]
    together = max((speed.concurrency * speed.tokens_per_second for speed in seen), default=alone)
    if slots > 1 and all(speed.concurrency == 1 for speed in speeds):
        together = max(together, alone * (1 + _GAIN.get(choice.device, 0.0) * (slots - 1)))
    count = sum(speed.requests for speed in own or speeds)
    how = "" if own else f" with other than {slots} slots"
    return Expected(round(together, 1), round(alone, 1), "measured", f"measured on {count} requests here{how}")


def _roofline(found: ModelView, choice: Selection, devices: Sequence[DeviceItem]) -> Expected:
    device = next((item for item in devices if item.type == choice.device and item.memory_bandwidth), None)
    if device is None or not device.memory_bandwidth:
        return Expected(0.0, 0.0, "roofline", f"the memory bandwidth of the {choice.device} is not known")
    context = int(choice.config.get("context_length") or RESOURCE_TABLE["small"].context_length)
    per_token = found.requirements.weights + found.requirements.kv_bytes_per_token * context * _FILLED
    alone = device.memory_bandwidth / max(per_token, 1.0)
    slots = int(choice.config.get("slots") or 1)
    together = alone * (1 + _GAIN.get(choice.device, 0.0) * (slots - 1))
    said = f"{device.memory_bandwidth / 1e9:.1f} GB/s of memory bandwidth, {per_token / 1e6:.0f} MB read per token"
    return Expected(round(together, 1), round(alone, 1), "roofline", f"estimated: {said}")


def recommend(hint: u.Hint, plans: Sequence[tuple[Plan, Expected]], room: int, gpus: int) -> u.Recommendation:
    """Return the best of the plans for the hint; `room` in bytes of main memory that can be had, `gpus` how many.

    Of several that are expected to be as fast, more cores are better, then less memory. There is at least one plan.
    """
    fit = [(plan, speed) for plan, speed in plans if plan.choice.memory <= room] or list(plans)

    def worth(found: tuple[Plan, Expected]) -> tuple[float, float, float]:
        plan, speed = found
        cores, memory = RESOURCE_TABLE[plan.resource_class].cores, plan.choice.memory
        match hint:
            case "latency":
                return speed.alone, cores, -memory
            case "throughput":
                return speed.together, cores, -memory
            case "economy":
                return -memory, speed.together, cores

    plan, speed = max(fit, key=worth)
    choice = plan.choice
    replicas = gpus if hint == "throughput" and choice.device == "gpu" and gpus else 1
    taken = choice.memory * replicas
    short = "" if taken <= room else f"; {(taken - room) / 2**20:.0f} MiB more than is free now"
    return u.Recommendation(
        resource_class=plan.resource_class,
        replicas=replicas,
        expected_throughput=round(speed.together * replicas, 1),
        expected_per_request=speed.alone,
        engine_type=choice.engine.name,
        device_type=choice.device,
        memory_bytes=taken,
        basis=speed.basis,
        reason=f"{choice.reason}; {plan.resource_class} for {hint}; {speed.reason}{short}",
    )
