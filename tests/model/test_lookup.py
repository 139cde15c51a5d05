"""A model is found by every name that a list shows: its id, its own name, and that of its repository."""

from __future__ import annotations

import pytest

from aima_core.errors import ValidationFailed
from services.model import units as u
from services.model.rules.lookup import resolve, unknown
from services.model.rules.state import ModelState


def pulled(ident: str, name: str, source: str = "", repo: str = "", tag: str | None = None) -> ModelState:
    pull = u.PullStarted(model_id=ident, source=source, repo=repo, tag=tag, mirror=None, run=1, started_at=0.0)
    return ModelState(ident, name, "ready", pull=pull if source else None)


MODELS = [
    pulled("llama3-2", "llama3.2", "ollama", "llama3.2"),
    pulled("llama3-2-1b", "llama3.2-1b", "ollama", "llama3.2", "1b"),
    pulled("maker-m", "M.gguf", "huggingface", "maker/m", "Q4"),
    pulled("weights", "Weights", "package", "llm-weights"),
    pulled("own", "Own Model"),
    pulled("own-2", "own model"),
]
WORLD = {f"model/{model.id}": model for model in MODELS}
FOUND = {
    "llama3-2": "llama3-2",
    "llama3.2": "llama3-2",
    "llama3.2:latest": "llama3-2",
    "LLAMA3.2:latest": "llama3-2",
    "llama3.2:1b": "llama3-2-1b",
    "hf.co/maker/m:Q4": "maker-m",
    "huggingface.co/maker/m:q4": "maker-m",
    "maker/m:Q4": "maker-m",
    "M.gguf:latest": "maker-m",
    "package/llm-weights": "weights",
    "weights:latest": "weights",
    "Own Model": "own",
    "own model": "own-2",
    "own:latest": "own",
    "llama3.2:3b": "llama3.2:3b",
    "nobody": "nobody",
}


@pytest.mark.parametrize(("text", "ident"), FOUND.items())
def test_a_model_is_found_by(text: str, ident: str) -> None:
    assert resolve(WORLD, text) == ident


def test_a_name_in_another_case_that_two_models_have_is_refused_with_both() -> None:
    with pytest.raises(ValidationFailed, match="ambiguous; it may be own, own-2") as refused:
        resolve(WORLD, "OWN MODEL")
    assert refused.value.reason == "AMBIGUOUS"


def test_an_unknown_name_gets_suggestions() -> None:
    assert unknown(WORLD, "lama3-2").message == "there is no model lama3-2; did you mean llama3-2 or llama3-2-1b?"
    assert unknown(WORLD, "zzz").message == "there is no model zzz; model.list shows the registered models"
