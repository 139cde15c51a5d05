"""Which engine a service runs on, with which options, and what it says when none will do."""

from __future__ import annotations

from typing import Any

import pytest

from aima_core.errors import Conflict
from services.engine.units import EngineView
from services.model.units import ModelView
from services.service.selection import choose_engine, options
from tests.toys import model_view


def engine(name: str, preference: int = 0, **other: Any) -> EngineView:
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
        "devices": ["cpu"],
        "options": ["context_length", "slots", "threads"],
        "preference": {"cpu": preference, "gpu": 100 - preference},
        "models": [],
        "instances": [],
    }
    return EngineView.model_validate(view | other)


MODEL = model_view("m")
CHOSEN: dict[str, tuple[list[EngineView], str, str, str, str]] = {
    # engines, the one asked for, device: the one chosen and why
    "the only one": ([engine("a")], "", "cpu", "a", "a on cpu: llm in gguf, preferred among a"),
    "the preferred one": (
        [engine("a", 1), engine("b", 3), engine("c", 2)],
        *("", "cpu", "b", "b on cpu: llm in gguf, preferred among a, b, c"),
    ),
    "preferred on that device": (
        [engine("a", 1, devices=["cpu", "gpu"]), engine("b", 3, devices=["cpu", "gpu"])],
        *("", "gpu", "a", "a on gpu: llm in gguf, preferred among a, b"),
    ),
    "the name decides": (
        [engine("b"), engine("c"), engine("a")],
        *("", "cpu", "c", "c on cpu: llm in gguf, preferred among a, b, c"),
    ),
    "one that is installed": (
        [engine("a", 9, installed=False), engine("b", 1)],
        *("", "cpu", "b", "b on cpu: llm in gguf, preferred among b"),
    ),
    "one that fits": (
        [engine("a", 9, model_types=["asr"]), engine("b", 8, formats=["onnx"]), engine("c", 1)],
        *("", "cpu", "c", "c on cpu: llm in gguf, preferred among c"),
    ),
    "one for the device": (
        [engine("a", 9), engine("b", 1, devices=["gpu"])],
        *("", "gpu", "b", "b on gpu: llm in gguf, preferred among b"),
    ),
    "asked for": ([engine("a", 9), engine("b", 1)], "b", "cpu", "b", "b on cpu: llm in gguf, asked for"),
}


@pytest.mark.parametrize(("engines", "wanted", "device", "name", "why"), CHOSEN.values(), ids=CHOSEN)
def test_the_engine_is(engines: list[EngineView], wanted: str, device: str, name: str, why: str) -> None:
    best, reason = choose_engine(MODEL, engines, wanted, device)
    assert (best.name, reason) == (name, why)


REFUSED: dict[str, tuple[list[EngineView], str, str, str, dict[str, Any]]] = {
    "none at all": (
        *([], "", "cpu", "model m is a llm in gguf: no engine serves that on cpu"),
        {"reason": "NO_ENGINE", "engines": []},
    ),
    "none that fits": (
        *([engine("a", formats=["onnx"])], "", "cpu", "model m is a llm in gguf: no engine serves that on cpu"),
        {"reason": "NO_ENGINE", "engines": []},
    ),
    "none installed": (
        *(
            [engine("a", installed=False)],
            "",
            "cpu",
            "model m is a llm in gguf: a would serve it on cpu, but is not installed",
        ),
        {"reason": "ENGINE_NOT_INSTALLED", "engines": ["a"]},
    ),
    "the one asked for does not fit": (
        *([engine("a"), engine("b", formats=["onnx"])], "b", "cpu"),
        "model m is a llm in gguf: b does not serve that on cpu",
        {"reason": "NO_ENGINE", "engines": []},
    ),
    "the one asked for is not installed": (
        *([engine("a"), engine("b", installed=False)], "b", "cpu"),
        "model m is a llm in gguf: b would serve it on cpu, but is not installed",
        {"reason": "ENGINE_NOT_INSTALLED", "engines": ["b"]},
    ),
}


@pytest.mark.parametrize(("engines", "wanted", "device", "message", "details"), REFUSED.values(), ids=REFUSED)
def test_no_engine_is_a_conflict_that_says_why(
    engines: list[EngineView], wanted: str, device: str, message: str, details: dict[str, Any]
) -> None:
    with pytest.raises(Conflict) as refused:
        choose_engine(MODEL, engines, wanted, device)
    assert (refused.value.message, refused.value.details) == (message, details)


@pytest.mark.parametrize(
    ("resource_class", "trained_for", "known", "own", "expected"),
    [
        ("small", 0, ["context_length", "slots"], {}, {"context_length": 2048, "slots": 1}),
        ("medium", 0, ["context_length", "slots"], {}, {"context_length": 4096, "slots": 4}),
        ("large", 0, ["context_length", "slots"], {}, {"context_length": 8192, "slots": 8}),
        ("large", 2048, ["context_length", "slots"], {}, {"context_length": 2048, "slots": 8}),
        ("small", 8192, ["context_length", "slots"], {}, {"context_length": 2048, "slots": 1}),
        ("large", 2048, ["slots"], {}, {"slots": 8}),
        ("large", 2048, [], {}, {}),
        ("large", 2048, [], {"threads": 2}, {"threads": 2}),
        ("large", 2048, ["context_length", "slots"], {"context_length": 4096}, {"context_length": 4096, "slots": 8}),
    ],
)
def test_the_options_of_a_start_are(
    resource_class: Any, trained_for: int, known: list[str], own: dict[str, Any], expected: dict[str, Any]
) -> None:
    found: ModelView = model_view("m", trained_for=trained_for)
    assert options(found, engine("a", options=known), resource_class, own) == expected
