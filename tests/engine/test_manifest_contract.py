"""What every manifest that AIMA brings promises. A manifest that is added is held to it with no edit here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from aima_core.errors import ValidationFailed
from aima_engines.kinds.request_kinds import KINDS
from services.engine.manifests.manifest import BUILT_IN, check, load_manifests, render
from services.engine.manifests.manifest_schema import Manifest, Option
from services.engine.outside.instances import MISSES
from services.model.units import ModelType

GIVEN: dict[str, Any] = {
    "python": "/venv/python",
    "model_path": "/models/some.weights",
    "model_name": "some-model",
    "port": 28317,
    "host": "127.7.7.7",
}
ASKED_AT = {  # where requests to a model of each type go: the path of the first kind that it answers
    kind: next(request.path for request in KINDS.values() if kind in request.types) for kind in get_args(ModelType)
}
BESIDE = {  # paths beside those, and the types whose models they ask
    "/v1/completions": {"llm", "vlm"},
    "/v1/audio/translations": {"asr"},
}
LISTS = "/v1/models"


@pytest.fixture(params=sorted(BUILT_IN.glob("*.yaml")), ids=lambda file: file.stem)
def file(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


@pytest.fixture
def manifest(file: Path) -> Manifest:
    return load_manifests([])[file.stem]


def rendered(manifest: Manifest, config: dict[str, Any] | None = None, model_type: str | None = None) -> str:
    """Return all that a start says to the engine."""
    argv, env = render(manifest, **GIVEN, config=config or {}, model_type=model_type)
    return "\n".join((*argv, *(f"{name}={value}" for name, value in env.items())))


def accepted(option: Option) -> Iterator[Any]:
    """Yield values at the edges of what an option says that it takes."""
    match option.type:
        case "bool":
            yield from (False, True)
        case "str":
            yield from option.choices or ("a text", "")
        case _:
            yield from (edge for edge in (option.minimum, option.maximum) if edge is not None)


def refused(option: Option) -> Iterator[Any]:
    """Yield values beyond them."""
    yield from ([], None)
    match option.type:
        case "bool":
            yield from (1, "true")
        case "str":
            yield from ("a\0b", 1, *(("none of these",) if option.choices else ()))
        case _:
            yield from ("1", float("nan"))
            yield from () if option.minimum is None else (option.minimum - 1,)
            yield from () if option.maximum is None else (option.maximum + 1,)


def typed(option: Option, value: Any) -> Any:
    return int(value) if option.type == "int" and isinstance(value, float) and value.is_integer() else value


def test_a_manifest_has_the_name_of_its_file(file: Path, manifest: Manifest) -> None:
    assert manifest.name == file.stem


def test_a_start_says_which_model_and_where_to_listen(manifest: Manifest) -> None:
    for model_type in (None, *manifest.model_types):
        said = rendered(manifest, model_type=model_type)
        assert said.startswith(GIVEN["python"]) or "{python}" not in manifest.command
        for name in ("model_path", "port", "host"):
            assert str(GIVEN[name]) in said, name


def test_every_option_takes_what_it_says_and_nothing_beyond(manifest: Manifest) -> None:
    for name, option in manifest.options.items():
        for value in accepted(option):
            check(manifest, {name: typed(option, value)})
        for value in refused(option):
            with pytest.raises(ValidationFailed) as refusal:
                check(manifest, {name: typed(option, value)})
            assert [fault["field"] for fault in refusal.value.details["fields"]] == [f"config.{name}"]


def test_every_option_that_is_set_reaches_the_engine(manifest: Manifest) -> None:
    for name, option in manifest.options.items():
        texts = {rendered(manifest, {name: typed(option, value)}) for value in accepted(option)}
        assert len(texts) > 1, f"{name} changes nothing"


def test_presets_are_of_types_that_it_serves(manifest: Manifest) -> None:
    assert set(manifest.presets) <= set(manifest.model_types)
    for model_type in manifest.presets:
        assert rendered(manifest, model_type=model_type) != rendered(manifest), model_type


def test_it_is_asked_for_every_type_that_it_serves_and_for_no_other(manifest: Manifest) -> None:
    served = set(manifest.model_types)
    wanted = {ASKED_AT[kind] for kind in served if kind in ASKED_AT}
    beside = {path for path, kinds in BESIDE.items() if kinds & served}
    assert wanted | {LISTS} <= set(manifest.endpoints) <= wanted | beside | {LISTS}


def test_its_features_fit_the_types_that_it_serves(manifest: Manifest) -> None:
    served, features = set(manifest.model_types), manifest.features
    assert features.supports_embedding == ("embedding" in served)
    assert features.supports_multimodal == ("vlm" in served)
    assert served & {"llm", "vlm"} or not features.supports_tools


def test_its_features_are_as_large_as_its_options_allow(manifest: Manifest) -> None:
    context, slots = manifest.options.get("context_length"), manifest.options.get("slots")
    assert context is None or context.maximum == manifest.features.max_context_length
    assert slots is None or slots.maximum == manifest.features.max_concurrent


def test_a_hang_is_noticed_within_five_seconds(manifest: Manifest) -> None:
    assert MISSES * (manifest.health.interval + manifest.health.timeout) <= 4.5


def test_it_is_preferred_only_where_it_runs(manifest: Manifest) -> None:
    assert set(manifest.preference) <= set(manifest.devices)


def test_it_explains_what_people_can_help(manifest: Manifest) -> None:
    assert {"PORT_IN_USE", "OUT_OF_MEMORY", "MODEL_INVALID"} <= {failure.error_code for failure in manifest.failures}
