"""Which engine and device a service runs on, with which options and memory; what is said when none will do."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from aima_core.errors import AimaError, Conflict, InsufficientResources
from services.device.units import DeviceItem
from services.engine.units import EngineView
from services.service import units as u
from services.service.rules.resource_table import RESOURCE_TABLE, Share
from services.service.rules.selection import SelectionRequest, choose, memory_of, options
from tests.toys.models import model_view

MIB = 2**20


def engine(name: str, cpu: int = 0, gpu: int = 0, *, devices: str = "cpu", **other: Any) -> EngineView:
    view: dict[str, Any] = {
        "name": name,
        "about": "",
        "type": "llm",
        "status": "stopped",
        "version": "1",
        "installed": True,
        "capabilities": [],
        "model_types": ["llm"],
        "formats": ["gguf"],
        "devices": devices.split(),
        "options": ["context_length", "slots"],
        "preference": {"cpu": cpu, "gpu": gpu},
        "models": [],
        "instances": [],
    }
    return EngineView.model_validate(view | other)


def device(kind: str, memory: int, **other: Any) -> DeviceItem:
    item: dict[str, Any] = {
        "id": f"n-{kind}-0",
        "name": kind,
        "vendor": "",
        "type": kind,
        "node": "n",
        "memory": memory * MIB,
        "memory_free": None,
        "cores": None,
        "capabilities": [],
        "memory_bandwidth": None,
    }
    return DeviceItem.model_validate(item | other)


def wish(
    engine: str = "", device: Any = "auto", size: Any = "small", replicas: int = 1, **config: Any
) -> SelectionRequest:
    return SelectionRequest(engine, device, size, config, replicas)


def gpu(memory: int, free: int | None = None) -> DeviceItem:
    return device("gpu", memory, memory_free=None if free is None else free * MIB)


# 100 MiB of weights, 64 KiB of cache per token, 20 MiB of its own; in class small 2048 tokens in one slot: 248 MiB
NEEDS: dict[str, int] = {
    "weights": 100 * MIB,
    "kv_bytes_per_token": 64 * 1024,
    "overhead": 20 * MIB,
    "context_length": 0,
}
MODEL = model_view("m", requirements=NEEDS)
SMALL = {"context_length": 2048, "slots": 1}
CPU = [device("cpu", 8192)]
BOTH = "cpu gpu"

# --- engine and device --------------------------------------------------------------------------------------------

Chosen = tuple[str, str, int, float, str]  # engine, device, MiB of main memory, share of a GPU, why
CHOSEN: dict[str, tuple[list[EngineView], list[DeviceItem], SelectionRequest, Chosen]] = {
    "the only one": (
        *([engine("a")], CPU, wish()),
        ("a", "cpu", 248, 0.0, "a on cpu: llm in gguf, the only suitable engine"),
    ),
    "the preferred one": (
        *([engine("a", 1), engine("b", 3), engine("c", 2)], CPU, wish()),
        ("b", "cpu", 248, 0.0, "b on cpu: llm in gguf, preferred among a, b, c"),
    ),
    "the name decides": (
        *([engine("b"), engine("c"), engine("a")], CPU, wish()),
        ("c", "cpu", 248, 0.0, "c on cpu: llm in gguf, preferred among a, b, c"),
    ),
    "one that is installed": (
        *([engine("a", 9, installed=False), engine("b", 1)], CPU, wish()),
        ("b", "cpu", 248, 0.0, "b on cpu: llm in gguf, the only suitable engine"),
    ),
    "one that fits": (
        *([engine("a", 9, model_types=["asr"]), engine("b", 8, formats=["onnx"]), engine("c", 1)], CPU, wish()),
        ("c", "cpu", 248, 0.0, "c on cpu: llm in gguf, the only suitable engine"),
    ),
    "asked for": (
        *([engine("a", 9), engine("b", 1)], CPU, wish("b")),
        ("b", "cpu", 248, 0.0, "b on cpu: llm in gguf, requested"),
    ),
    "without any device": (
        *([engine("a")], [], wish()),
        ("a", "cpu", 248, 0.0, "a on cpu: llm in gguf, the only suitable engine"),
    ),
    "the GPU, of two that are liked the same": (
        *([engine("a", devices=BOTH)], [*CPU, gpu(1000)], wish()),
        ("a", "gpu", 20, 0.25, "a on gpu: llm in gguf, the only suitable engine"),
    ),
    "the GPU before the name": (
        *([engine("a", devices="gpu"), engine("b", devices="cpu")], [*CPU, gpu(1000)], wish()),
        ("a", "gpu", 20, 0.25, "a on gpu: llm in gguf, preferred among a, b"),
    ),
    "the device that the manifest likes": (
        *([engine("a", 2, 1, devices=BOTH)], [*CPU, gpu(1000)], wish()),
        ("a", "cpu", 248, 0.0, "a on cpu: llm in gguf, the only suitable engine"),
    ),
    "the engine that is liked on that device": (
        *([engine("a", 9, 1, devices=BOTH), engine("b", 1, 5, devices=BOTH)], [*CPU, gpu(1000)], wish(device="gpu")),
        ("b", "gpu", 20, 0.25, "b on gpu: llm in gguf, preferred among a, b"),
    ),
    "the CPU, asked for": (
        *([engine("a", 1, 9, devices=BOTH)], [*CPU, gpu(1000)], wish(device="cpu")),
        ("a", "cpu", 248, 0.0, "a on cpu: llm in gguf, the only suitable engine"),
    ),
    "the CPU, there is no GPU": (
        *([engine("a", 1, 9, devices=BOTH)], CPU, wish()),
        ("a", "cpu", 248, 0.0, "a on cpu: llm in gguf, the only suitable engine; no GPU with 248 MiB free"),
    ),
    "the CPU, the GPU has too little": (
        *([engine("a", 1, 9, devices=BOTH)], [*CPU, gpu(247)], wish()),
        ("a", "cpu", 248, 0.0, "a on cpu: llm in gguf, the only suitable engine; no GPU with 248 MiB free"),
    ),
    "the CPU, the GPU is taken": (
        *([engine("a", 1, 9, devices=BOTH)], [*CPU, gpu(1000, 247)], wish("a")),
        ("a", "cpu", 248, 0.0, "a on cpu: llm in gguf, requested; no GPU with 248 MiB free"),
    ),
    "a GPU that is just large enough": (
        *([engine("a", devices=BOTH)], [*CPU, gpu(248)], wish()),
        ("a", "gpu", 20, 1.0, "a on gpu: llm in gguf, the only suitable engine"),
    ),
    "a GPU with just enough left": (
        *([engine("a", devices=BOTH)], [*CPU, gpu(1000, 248)], wish()),
        ("a", "gpu", 20, 0.25, "a on gpu: llm in gguf, the only suitable engine"),
    ),
    "the share is of the GPU with the most left": (
        *([engine("a", devices=BOTH)], [gpu(1000, 300), gpu(4000, 400), gpu(500, 350)], wish()),
        ("a", "gpu", 20, 0.07, "a on gpu: llm in gguf, the only suitable engine"),
    ),
    "another engine on the CPU says nothing of the GPU": (
        *([engine("a", 1), engine("b", 9, installed=False, devices=BOTH)], CPU, wish()),
        ("a", "cpu", 248, 0.0, "a on cpu: llm in gguf, the only suitable engine"),
    ),
    "a GPU that is too small for another engine only": (
        *([engine("a", gpu=9, devices=BOTH), engine("b", gpu=1, devices="gpu", options=[])], [gpu(200)], wish()),
        ("b", "gpu", 20, 0.6, "b on gpu: llm in gguf, preferred among a, b"),
    ),
    "more context takes more": (
        *([engine("a")], CPU, wish(size="large")),
        ("a", "cpu", 4216, 0.0, "a on cpu: llm in gguf, the only suitable engine"),
    ),
}


@pytest.mark.parametrize(("engines", "devices", "wanted", "expected"), CHOSEN.values(), ids=CHOSEN)
def test_the_choice_is(
    engines: list[EngineView], devices: list[DeviceItem], wanted: SelectionRequest, expected: Chosen
) -> None:
    choice = choose(MODEL, engines, devices, wanted)
    found = (choice.engine.name, choice.device, choice.memory / MIB, choice.gpu_fraction, choice.reason)
    assert found == expected


def test_the_order_in_which_engines_and_devices_are_told_decides_nothing() -> None:
    engines = [engine("a", 1, 3, devices=BOTH), engine("b", 2, 3, devices=BOTH), engine("c", 3)]
    devices = [*CPU, gpu(1000, 300), gpu(2000, 300)]
    one = choose(MODEL, engines, devices[:2], wish())
    other = choose(MODEL, engines[::-1], devices[1::-1], wish())
    assert one == other
    assert (one.engine.name, one.device) == ("b", "gpu")


# --- refusals -----------------------------------------------------------------------------------------------------

REFUSED: dict[
    str, tuple[list[EngineView], list[DeviceItem], SelectionRequest, type[AimaError], str, dict[str, Any]]
] = {
    "none at all": (
        *(
            [],
            CPU,
            wish(),
            Conflict,
            "no engine reads the format gguf of model m; installed engines read: none",
        ),
        {"reason": "NO_ENGINE", "engines": []},
    ),
    "none at all, on a device": (
        *(
            [],
            CPU,
            wish(device="cpu"),
            Conflict,
            "no engine reads the format gguf of model m; installed engines read: none",
        ),
        {"reason": "NO_ENGINE", "engines": []},
    ),
    "none that reads the format": (
        *([engine("b", formats=["onnx"]), engine("a", formats=["onnx", "e5s"])], CPU, wish(), Conflict),
        "no engine reads the format gguf of model m; installed engines read: e5s (a), onnx (a, b)",
        {"reason": "NO_ENGINE", "engines": []},
    ),
    "none for that type": (
        *([engine("a", model_types=["asr"]), engine("b", formats=["onnx"])], CPU, wish(), Conflict),
        "no engine that reads gguf serves llm, the type of model m; they serve: asr (a)",
        {"reason": "NO_ENGINE", "engines": []},
    ),
    "none for that device": (
        *([engine("a")], [*CPU, gpu(1000)], wish(device="gpu"), Conflict),
        "no engine serves model m on gpu; engines that serve it run on: cpu (a)",
        {"reason": "NO_ENGINE", "engines": []},
    ),
    "none is installed": (
        *([engine("b", installed=False), engine("a", installed=False)], CPU, wish(), Conflict),
        "model m (llm, gguf) needs an engine that is not installed: b or a; "
        "install it with: aima call engine.install name=b",
        {"reason": "ENGINE_NOT_INSTALLED", "engines": ["b", "a"]},
    ),
    "none for that device is installed": (
        *([engine("a"), engine("b", installed=False, devices="gpu")], CPU, wish(device="gpu"), Conflict),
        "model m (llm, gguf) needs an engine that is not installed on gpu: b; "
        "install it with: aima call engine.install name=b",
        {"reason": "ENGINE_NOT_INSTALLED", "engines": ["b"]},
    ),
    "the one asked for does not fit": (
        *([engine("a"), engine("b", formats=["onnx"])], CPU, wish("b"), Conflict),
        "engine b cannot serve model m: it reads onnx, and the format of the model is gguf",
        {"reason": "NO_ENGINE", "engines": []},
    ),
    "the one asked for does not serve the type": (
        *([engine("a"), engine("b", model_types=["asr", "tts"])], CPU, wish("b"), Conflict),
        "engine b cannot serve model m: it serves asr, tts, and the type of the model is llm",
        {"reason": "NO_ENGINE", "engines": []},
    ),
    "the one asked for does not run there": (
        *([engine("a", devices="cpu gpu"), engine("b")], CPU, wish("b", "gpu"), Conflict),
        "engine b cannot serve model m on gpu: it runs on cpu",
        {"reason": "NO_ENGINE", "engines": []},
    ),
    "the one asked for is unknown": (
        *([engine("a")], CPU, wish("x", "cpu"), Conflict),
        "there is no engine x; known: a",
        {"reason": "NO_ENGINE", "engines": []},
    ),
    "the one asked for is not installed": (
        *([engine("a"), engine("b", installed=False)], CPU, wish("b"), Conflict),
        "model m (llm, gguf) needs an engine that is not installed: b; "
        "install it with: aima call engine.install name=b",
        {"reason": "ENGINE_NOT_INSTALLED", "engines": ["b"]},
    ),
    "no GPU": (
        *([engine("a", devices=BOTH)], CPU, wish(device="gpu"), InsufficientResources),
        "model m needs 248 MiB of GPU memory, but no GPU has been detected; "
        "create the service with device=cpu, or connect a GPU and run device.detect",
        {"reason": "NO_GPU", "requested": 248 * MIB, "available": 0, "missing": 248 * MIB},
    ),
    "no GPU for what runs on nothing else": (
        *([engine("a", devices="gpu")], CPU, wish(), InsufficientResources),
        "model m needs 248 MiB of GPU memory, but no GPU has been detected; connect a GPU and run device.detect",
        {"reason": "NO_GPU", "requested": 248 * MIB, "available": 0, "missing": 248 * MIB},
    ),
    "no GPU with enough left": (
        *([engine("a", devices=BOTH)], [gpu(1000, 100), gpu(1000, 200)], wish(device="gpu"), InsufficientResources),
        "model m needs 248 MiB of GPU memory, but the freest GPU, n-gpu-0, has 200 of 1000 MiB free; free GPU memory "
        "(resource.allocations shows who holds it), or use a smaller resource_class, or "
        "create the service with device=cpu",
        {
            "reason": "INSUFFICIENT_ACCELERATORS",
            "requested": 248 * MIB,
            "available": 200 * MIB,
            "missing": 48 * MIB,
        },
    ),
}


@pytest.mark.parametrize(("engines", "devices", "wanted", "kind", "message", "details"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_says_why(
    engines: list[EngineView],
    devices: list[DeviceItem],
    wanted: SelectionRequest,
    kind: type[AimaError],
    message: str,
    details: dict[str, Any],
) -> None:
    with pytest.raises(AimaError) as refused:
        choose(MODEL, engines, devices, wanted)
    assert (type(refused.value), refused.value.message, refused.value.details) == (kind, message, details)


# --- options ------------------------------------------------------------------------------------------------------

KNOWN = ["context_length", "slots"]
OPTIONS: list[tuple[Any, int, list[str], dict[str, Any], dict[str, Any]]] = [
    # class, context that the model was trained for, options that the engine has, the service's own: those of the start
    ("small", 0, KNOWN, {}, {"context_length": 2048, "slots": 1}),
    ("medium", 0, KNOWN, {}, {"context_length": 4096, "slots": 4}),
    ("large", 0, KNOWN, {}, {"context_length": 8192, "slots": 8}),
    ("large", 2048, KNOWN, {}, {"context_length": 2048, "slots": 8}),
    ("large", 8192, KNOWN, {}, {"context_length": 8192, "slots": 8}),
    ("small", 8192, KNOWN, {}, {"context_length": 2048, "slots": 1}),
    ("large", 2048, ["slots"], {}, {"slots": 8}),
    ("large", 2048, [], {}, {}),
    ("large", 2048, [], {"threads": 2}, {"threads": 2}),
    ("large", 2048, KNOWN, {"context_length": 4096}, {"context_length": 4096, "slots": 8}),
    ("large", 2048, KNOWN, {"slots": 1, "x": "y"}, {"context_length": 2048, "slots": 1, "x": "y"}),
]


@pytest.mark.parametrize(("size", "trained_for", "known", "own", "expected"), OPTIONS)
def test_the_options_of_a_start_are(
    size: Any, trained_for: int, known: list[str], own: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = model_view("m", trained_for=trained_for)
    assert options(found, engine("a", options=known), wish(size=size, **own), 16) == expected


@pytest.mark.parametrize(
    ("size", "cores", "replicas", "own", "expected"),
    [
        ("small", 8, 1, {}, {"threads": 4}),
        ("small", 7, 1, {}, {"threads": 3}),
        ("small", 1, 1, {}, {"threads": 1}),
        ("medium", 8, 1, {}, {"threads": 8}),
        ("medium", 8, 3, {}, {"threads": 2}),
        ("large", 8, 2, {}, {"threads": 4}),
        ("large", 8, 100, {}, {"threads": 1}),
        ("large", 8, 0, {}, {"threads": 8}),
        ("large", None, 1, {}, {}),
        ("small", 8, 1, {"threads": 7}, {"threads": 7}),
    ],
)
def test_the_replicas_of_a_service_share_the_cores_of_its_class(
    size: Any, cores: int | None, replicas: int, own: dict[str, Any], expected: dict[str, Any]
) -> None:
    asked = wish(size=size, replicas=replicas, **own)
    assert options(MODEL, engine("a", options=["threads"]), asked, cores) == expected


def test_the_cores_are_those_of_the_processor_not_of_a_gpu() -> None:
    devices = [device("gpu", 1000, cores=4096), device("cpu", 1000, cores=6)]
    choice = choose(MODEL, [engine("a", options=["threads"])], devices, wish(size="medium"))
    assert choice.config == {"threads": 6}


def test_the_resource_table_has_these_classes() -> None:
    assert {
        "small": Share(context_length=2048, slots=1, cores=0.5),
        "medium": Share(context_length=4096, slots=4, cores=1.0),
        "large": Share(context_length=8192, slots=8, cores=1.0),
    } == RESOURCE_TABLE
    assert tuple(RESOURCE_TABLE) == get_args(u.ResourceClass)


# --- memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "mib"),
    [
        ({}, 120),
        ({"slots": 4}, 120),
        ({"context_length": 1024}, 184),
        ({"context_length": 1024, "slots": 1}, 184),
        ({"context_length": 1024, "slots": 4}, 376),
        ({"context_length": 2048, "slots": 1}, 248),
        ({"context_length": None, "slots": None}, 120),
    ],
)
def test_a_replica_takes_its_weights_its_cache_and_its_own(config: dict[str, Any], mib: int) -> None:
    assert memory_of(MODEL, config) == mib * MIB


def test_an_own_option_counts_for_the_memory() -> None:
    choice = choose(MODEL, [engine("a")], CPU, wish(context_length=1024, slots=4))
    assert (choice.config, choice.memory) == ({"context_length": 1024, "slots": 4}, 376 * MIB)
