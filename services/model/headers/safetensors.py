"""Reads a safetensors model: the headers of its files, and the config.json beside them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from services.model.headers.guess import class_type, tensor_type
from services.model.headers.model_file import ModelFile, check_end, not_a_model
from services.model.headers.safetensors_files import check_alone, weights
from services.model.headers.safetensors_header import MAX_HEADER, Header, Tensor, read_header
from services.model.paths.model_path import ModelPath

MAX_CONFIG = 16 << 20  # bytes of a tokenizer's configuration or a chat template, which are only searched
MAX_DECODED = 4 << 20  # bytes of a config.json
MAX_TENSORS = 1_000_000  # in all files of a model; the largest have some hundred thousand


def recognises(start: bytes, size: int) -> bool:
    """Return whether the first bytes of a file of `size` bytes may start a safetensors file."""
    return (
        len(start) >= 9 and 2 <= int.from_bytes(start[:8], "little") <= MAX_HEADER and start[8:9] == b"{" and size > 9
    )


def read(path: ModelPath) -> ModelFile:
    """Read one file and the config.json beside it. Raises ValidationFailed (NOT_A_MODEL, TRUNCATED)."""
    check_alone(path)
    return _read(path, path.stem, path.parent, [path])


def read_folder(folder: ModelPath) -> ModelFile | None:
    """Read the model in a folder; None if the folder has no safetensors. Raises as `read`, also AMBIGUOUS."""
    files = weights(folder)
    return _read(folder, folder.name, folder, files) if files else None


def _read(path: ModelPath, name: str, folder: ModelPath, files: Sequence[ModelPath]) -> ModelFile:
    headers: list[Header] = []
    for file in files:
        headers.append(read_header(file))
        check_end(file, headers[-1].size, headers[-1].tensors_end)
        if sum(len(header.tensors) for header in headers) > MAX_TENSORS:
            raise not_a_model(path, f"it has more than {MAX_TENSORS} tensors")
    return _describe(path, name, folder, headers)


def _describe(path: ModelPath, name: str, folder: ModelPath, headers: Sequence[Header]) -> ModelFile:
    """Return the model that the headers and the config.json describe. Raises ValidationFailed (NOT_A_MODEL)."""
    tensors = {name: tensor for header in headers for name, tensor in header.tensors.items()}
    if not tensors:
        raise not_a_model(path, "it has no tensors")
    config = Config.of(folder)
    classes = config.names("architectures") or config.names("_class_name")
    heads, hidden = config.number("num_attention_heads", "n_head"), config.number("hidden_size", "n_embd", "d_model")
    head_length = config.number("head_dim") or (hidden // heads if hidden and heads else None)
    return ModelFile(
        format="safetensors",
        type=class_type(classes) or tensor_type(tensors),
        name=name,
        architecture=classes[0] if classes else None,
        parameters=sum(math.prod(tensor.shape) for tensor in tensors.values()),
        quantization=config.quantization() or _main_type(tensors),
        context_length=config.number("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"),
        layers=config.number("num_hidden_layers", "n_layer", "num_layers"),
        embedding_length=hidden,
        heads=heads,
        kv_heads=config.number("num_key_value_heads") or heads,
        key_length=head_length,
        value_length=head_length,
        vocabulary=config.number("vocab_size"),
        tools="tools" in _chat_template(folder),
        size=sum(header.size for header in headers),
        tensors_end=sum(header.tensors_end for header in headers),
    )


def _main_type(tensors: dict[str, Tensor]) -> str:
    """Return the tensor type with the most bytes."""
    total: Counter[str] = Counter()
    for tensor in tensors.values():
        total[tensor.dtype] += tensor.data_offsets[1] - tensor.data_offsets[0]
    return total.most_common(1)[0][0]


def _chat_template(folder: ModelPath) -> str:
    return " ".join(_text(folder / name) for name in ("chat_template.jinja", "tokenizer_config.json"))


def _text(path: ModelPath, limit: int = MAX_CONFIG) -> str:
    """Return the text of a small file; "" if it is missing or too large, because the file only improves a guess."""
    if not path.is_file() or path.stat().st_size > limit:
        return ""
    with path.open("rb") as file:
        return file.read(limit).decode("utf-8", "replace")


@dataclass(frozen=True)
class Config:
    """A config.json or a diffusers model_index.json. A vision model's config nests the numbers of the text model."""

    values: dict[str, object]

    @classmethod
    def of(cls, folder: ModelPath) -> Config:
        """Read the config of a folder. A missing or invalid config counts as empty."""
        text = _text(folder / "config.json", MAX_DECODED) or _text(folder / "model_index.json", MAX_DECODED)
        try:
            return cls(msgspec.json.decode(text or "{}", type=dict[str, object]))
        except (msgspec.MsgspecError, RecursionError):
            return cls({})

    def number(self, *keys: str) -> int | None:
        """Return the count under the first key that has a valid count; None if no key has one."""
        nested = self.values.get("text_config")
        for values in (self.values, nested if isinstance(nested, dict) else {}):
            for key in keys:
                value = values.get(key)
                if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31:
                    return value
        return None

    def names(self, key: str) -> list[str]:
        """Return the names under a key. The value may be a name or a list of names."""
        value = self.values.get(key)
        names = value if isinstance(value, list) else [value]
        return [name for name in names if isinstance(name, str)]

    def quantization(self) -> str | None:
        """Return the quantisation method ("awq", "gptq", "fp8"); None if the weights are not quantised."""
        method = self.values.get("quantization_config")
        name = method.get("quant_method") if isinstance(method, dict) else None
        return name if isinstance(name, str) else None
