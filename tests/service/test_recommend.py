"""What is said of how to serve a model best: measured before estimated, the estimate worked out by hand."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from services.device.units import DeviceItem
from services.inference.units import Speed
from services.service import units as u
from services.service.rules.recommendation import Expected, Plan, expect, recommend
from services.service.rules.selection import Selection
from tests.service.test_selection import MIB, device, engine
from tests.toys.models import model_view

# 1 GB of weights and 100 kB of cache per token: with half of 4096 tokens 204.8 MB, so 1204.8 MB are read per token
NEEDS = {"weights": 10**9, "kv_bytes_per_token": 10**5, "overhead": 0, "context_length": 0}
MODEL = model_view("m", requirements=NEEDS)


def choice(on: str = "cpu", *, memory: int = 100, reason: str = "it fits", **config: Any) -> Selection:
    return Selection(engine("a", devices="cpu gpu"), on, config, memory * MIB, 0.0, reason)


def speed(
    tokens: float, concurrency: int = 1, *, slots: int = 4, requests: int = 3, on: str = "cpu", name: str = "a"
) -> Speed:
    return Speed(
        engine=name, device=on, slots=slots, concurrency=concurrency, requests=requests, tokens_per_second=tokens
    )


def machine(cpu: int | None = 12_048_000_000, gpu: int | None = 1_204_800_000_000) -> list[DeviceItem]:
    return [device("cpu", 1000, memory_bandwidth=cpu), device("gpu", 1000, memory_bandwidth=gpu)]


CONFIG: dict[str, Any] = {"context_length": 4096, "slots": 4}

# --- the estimate -------------------------------------------------------------------------------------------------

ESTIMATED: dict[str, tuple[Selection, list[DeviceItem], Expected]] = {
    "on a CPU company adds a tenth": (
        choice(**CONFIG),
        machine(),
        Expected(
            13.0, 10.0, "roofline", "estimated: 12.0 GB/s of memory bandwidth, 1205 MB read per token"
        ),  # 12.048 / 1.2048 = 10 alone; 10 x (1 + 0.1 x 3) together
    ),
    "on a GPU six tenths": (
        choice("gpu", **CONFIG),
        machine(),
        Expected(2800.0, 1000.0, "roofline", "estimated: 1204.8 GB/s of memory bandwidth, 1205 MB read per token"),
    ),
    "one slot has no company": (
        choice(context_length=4096, slots=1),
        machine(),
        Expected(10.0, 10.0, "roofline", "estimated: 12.0 GB/s of memory bandwidth, 1205 MB read per token"),
    ),
    "no such option": (
        choice(),
        machine(),  # of 2048 tokens half: 1102.4 MB
        Expected(10.9, 10.9, "roofline", "estimated: 12.0 GB/s of memory bandwidth, 1102 MB read per token"),
    ),
    "bandwidth unknown": (
        choice(**CONFIG),
        machine(cpu=None),
        Expected(0.0, 0.0, "roofline", "the memory bandwidth of the cpu is unknown"),
    ),
    "bandwidth of the GPU unknown": (
        choice("gpu", **CONFIG),
        machine(gpu=None),
        Expected(0.0, 0.0, "roofline", "the memory bandwidth of the gpu is unknown"),
    ),
    "no device is known": (
        choice(**CONFIG),
        [],
        Expected(0.0, 0.0, "roofline", "the memory bandwidth of the cpu is unknown"),
    ),
    "of two GPUs one tells": (
        choice("gpu", **CONFIG),
        [*machine(gpu=None), device("gpu", 1000, memory_bandwidth=120_480_000_000)],
        Expected(280.0, 100.0, "roofline", "estimated: 120.5 GB/s of memory bandwidth, 1205 MB read per token"),
    ),
}


@pytest.mark.parametrize(("chosen", "devices", "expected"), ESTIMATED.values(), ids=ESTIMATED)
def test_without_measurements_it_is_estimated(chosen: Selection, devices: list[DeviceItem], expected: Expected) -> None:
    assert expect(MODEL, chosen, devices, []) == expected


def test_a_model_without_weights_is_no_division_by_zero() -> None:
    nothing = model_view("m", requirements=dict.fromkeys(NEEDS, 0))
    assert expect(nothing, choice(slots=1), machine(cpu=7), []).alone == 7.0


# --- what was measured --------------------------------------------------------------------------------------------

MEASURED: dict[str, tuple[Selection, list[Speed], Expected]] = {
    "alone and in company": (
        choice(**CONFIG),
        [speed(30, 1), speed(12, 4, requests=5)],
        Expected(48.0, 30.0, "measured", "measured on 8 requests here"),
    ),
    "the best company that was seen counts": (
        choice(**CONFIG),
        [speed(30, 1), speed(20, 3), speed(12, 4)],
        Expected(60.0, 30.0, "measured", "measured on 9 requests here"),
    ),
    "alone, the gain of company is assumed": (
        choice(**CONFIG),
        [speed(30, 1)],
        Expected(39.0, 30.0, "measured", "measured on 3 requests here"),  # 30 x (1 + 0.1 x 3)
    ),
    "alone on a GPU": (
        choice("gpu", **CONFIG),
        [speed(30, 1, on="gpu")],
        Expected(84.0, 30.0, "measured", "measured on 3 requests here"),  # 30 x (1 + 0.6 x 3)
    ),
    "never fully used, but more than is assumed": (
        choice(**CONFIG),
        [speed(30, 1), speed(25, 2)],
        Expected(50.0, 30.0, "measured", "measured on 6 requests here"),
    ),
    "with more company than there are slots it is not counted": (
        choice(context_length=4096, slots=1),
        [speed(30, 1, slots=1), speed(20, 2, slots=1)],
        Expected(30.0, 30.0, "measured", "measured on 6 requests here"),
    ),
    "as many slots before others": (
        choice(**CONFIG),
        [speed(30, 1), speed(10, 4), speed(99, 1, slots=1), speed(50, 4, slots=8)],
        Expected(40.0, 30.0, "measured", "measured on 6 requests here"),
    ),
    "others when there are none": (
        choice(**CONFIG),
        [speed(20, 1, slots=8), speed(10, 4, slots=8), speed(9, 8, slots=8)],
        Expected(40.0, 20.0, "measured", "measured on 9 requests here with a number of slots other than 4"),
    ),
    "in company only": (
        choice(**CONFIG),
        [speed(10, 4)],
        Expected(40.0, 10.0, "measured", "measured on 3 requests here"),
    ),
}


@pytest.mark.parametrize(("chosen", "speeds", "expected"), MEASURED.values(), ids=MEASURED)
def test_what_was_measured_comes_before_an_estimate(chosen: Selection, speeds: list[Speed], expected: Expected) -> None:
    assert expect(MODEL, chosen, machine(), speeds) == expected
    assert expect(MODEL, chosen, machine(), speeds[::-1]) == expected


@pytest.mark.parametrize(
    "other", [speed(99, on="gpu"), speed(99, name="b"), speed(99, requests=2)], ids=["device", "engine", "too few"]
)
def test_what_was_measured_elsewhere_or_hardly_ever_counts_for_nothing(other: Speed) -> None:
    assert expect(MODEL, choice(**CONFIG), machine(), [other]).basis == "roofline"


# --- the recommendation -------------------------------------------------------------------------------------------


def expected(together: float, alone: float) -> Expected:
    return Expected(together, alone, "measured", "measured on 3 requests here")


def plan(
    size: u.ResourceClass, on: str = "cpu", *, memory: int, together: float, alone: float
) -> tuple[Plan, Expected]:
    return Plan(size, choice(on, memory=memory)), expected(together, alone)


PLANS = [
    plan("small", memory=100, together=10, alone=10),
    plan("medium", memory=200, together=30, alone=20),
    plan("large", memory=400, together=50, alone=20),
]
ON_GPU = [
    plan("small", "gpu", memory=20, together=100, alone=100),
    plan("large", "gpu", memory=20, together=300, alone=100),
    *PLANS,
]
ALIKE = [
    plan("medium", memory=100, together=30, alone=10),
    plan("large", memory=100, together=50, alone=9),
]
UNKNOWN = [
    plan("small", memory=100, together=0, alone=0),
    plan("medium", memory=200, together=0, alone=0),
    plan("large", memory=400, together=0, alone=0),
]
RECOMMENDED: dict[str, tuple[u.Hint, list[tuple[Plan, Expected]], int, int, tuple[Any, ...]]] = {
    # hint, plans, room in MiB, GPUs: class, device, replicas, together, alone, MiB
    "latency": ("latency", PLANS, 1000, 0, ("medium", "cpu", 1, 30.0, 20.0, 200)),  # the smaller of two that are alike
    "throughput": ("throughput", PLANS, 1000, 0, ("large", "cpu", 1, 50.0, 20.0, 400)),
    "economy": ("economy", PLANS, 1000, 0, ("small", "cpu", 1, 10.0, 10.0, 100)),
    "economy: of two that take as little the quicker": ("economy", ALIKE, 1000, 0, ("large", "cpu", 1, 50.0, 9.0, 100)),
    "latency, little room": ("latency", PLANS, 150, 0, ("small", "cpu", 1, 10.0, 10.0, 100)),
    "throughput, little room": ("throughput", PLANS, 399, 0, ("medium", "cpu", 1, 30.0, 20.0, 200)),
    "throughput, just enough room": ("throughput", PLANS, 400, 0, ("large", "cpu", 1, 50.0, 20.0, 400)),
    "latency, a GPU: of two that are alike the one with more cores": (
        *("latency", ON_GPU, 1000, 1),
        ("large", "gpu", 1, 300.0, 100.0, 20),
    ),
    "throughput, a GPU": ("throughput", ON_GPU, 1000, 1, ("large", "gpu", 1, 300.0, 100.0, 20)),
    "throughput, three GPUs": ("throughput", ON_GPU, 1000, 3, ("large", "gpu", 3, 900.0, 100.0, 60)),
    "latency, three GPUs": ("latency", ON_GPU, 1000, 3, ("large", "gpu", 1, 300.0, 100.0, 20)),
    "latency, nothing is known": ("latency", UNKNOWN, 1000, 0, ("medium", "cpu", 1, 0.0, 0.0, 200)),
    "throughput, nothing is known": ("throughput", UNKNOWN, 1000, 0, ("medium", "cpu", 1, 0.0, 0.0, 200)),
    "economy, nothing is known": ("economy", UNKNOWN[1:], 1000, 0, ("medium", "cpu", 1, 0.0, 0.0, 200)),
    "economy, three GPUs: of two that take as little the quicker": (
        *("economy", ON_GPU, 1000, 3),
        ("large", "gpu", 1, 300.0, 100.0, 20),
    ),
    "throughput on the CPU beside a GPU": ("throughput", PLANS, 1000, 2, ("large", "cpu", 1, 50.0, 20.0, 400)),
}


@pytest.mark.parametrize(("hint", "plans", "room", "gpus", "best"), RECOMMENDED.values(), ids=RECOMMENDED)
def test_for_a_hint_this_is_best(
    hint: u.Hint, plans: list[tuple[Plan, Expected]], room: int, gpus: int, best: tuple[Any, ...]
) -> None:
    size, on, replicas, together, alone, memory = best
    assert recommend(hint, plans, room * MIB, gpus) == u.Recommendation(
        resource_class=size,
        replicas=replicas,
        expected_throughput=together,
        expected_per_request=alone,
        engine_type="a",
        device_type=on,
        memory_bytes=memory * MIB,
        basis="measured",
        reason=f"it fits; {size} for {hint}; measured on 3 requests here",
    )


@pytest.mark.parametrize("hint", get_args(u.Hint))
def test_too_little_room_is_said(hint: u.Hint) -> None:
    found = recommend(hint, PLANS[:1], 60 * MIB, 0)
    assert found.reason == f"it fits; small for {hint}; measured on 3 requests here; needs 40 MiB more than is free now"
    assert (found.resource_class, found.memory_bytes) == ("small", 100 * MIB)


def test_room_for_one_but_not_for_one_on_each_gpu_is_said() -> None:
    found = recommend("throughput", ON_GPU, 50 * MIB, 3)
    fits = found.memory_bytes <= 50 * MIB  # fewer replicas, or the truth
    assert fits or found.reason.endswith("; needs 10 MiB more than is free now")
