"""The header of a safetensors file (https://huggingface.co/docs/safetensors), and the config.json beside it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import msgspec

from services.model.headers.cursor import U64, Cursor, PastTheEnd
from services.model.headers.guess import class_type, tensor_type
from services.model.headers.model_file import ModelFile, check_end, not_a_model, truncated

MAX_HEADER = 100_000_000  # bytes, the reference implementation's own limit
MAX_DIMS = 32  # dimensions of a tensor; limits the time to multiply them
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16}
BITS |= {"I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64}
MAX_CONFIG = 16 << 20  # bytes of a config.json or a chat template
INDEX = "model.safetensors.index.json"
MAX_INDEX = 64 << 20  # bytes


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


class Tensor(msgspec.Struct, frozen=True):
    """One entry of the header; the offsets are relative to the end of the header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


@dataclass(frozen=True)
class Header:
    """The header of one file: its tensors by name, the file's size, and the end of the last tensor, in bytes."""

    size: int
    tensors: dict[str, Tensor]
    tensors_end: int


def recognises(start: bytes, size: int) -> bool:
    """Return whether the first bytes of a file of `size` bytes may start a safetensors file."""
    return (
        len(start) >= 9 and 2 <= int.from_bytes(start[:8], "little") <= MAX_HEADER and start[8:9] == b"{" and size > 9
    )


def read(path: Path) -> ModelFile:
    """Read one file and the config.json beside it. Raises ValidationFailed (NOT_A_MODEL, TRUNCATED)."""
    return _read(path, path.parent, [path])


def read_folder(folder: Path) -> ModelFile | None:
    """Return the model in a folder; None if the folder has no safetensors model. Raises the errors of `read`.

    The model is the shards that an index lists, or else a diffusers pipeline, or else all files of the folder.
    """
    if (folder / INDEX).is_file():
        return _read(folder, folder, _indexed(folder))
    if (folder / "model_index.json").is_file():  # a diffusers pipeline has one folder per network
        return _read(folder, folder, sorted(folder.glob("*/*.safetensors")))
    files = sorted(file for file in folder.glob("*.safetensors") if file.is_file())
    return _read(folder, folder, files) if files else None


def _indexed(folder: Path) -> list[Path]:
    """Return the files that the index of a sharded model lists. They must be in the folder of the index."""
    index = folder / INDEX
    if index.stat().st_size > MAX_INDEX:
        raise not_a_model(folder, f"{INDEX} is too large")
    try:
        names = set(msgspec.json.decode(index.read_bytes(), type=_Index).weight_map.values())
    except (msgspec.MsgspecError, RecursionError):
        raise not_a_model(folder, f"{INDEX} is not a valid index") from None
    if any(Path(name).name != name for name in names):
        raise not_a_model(folder, f"{INDEX} names files outside the folder")
    files = [folder / name for name in sorted(names)]
    if missing := next((file for file in files if not file.is_file()), None):
        raise truncated(folder, f"the file {missing.name} is missing")
    return files


def _read(path: Path, folder: Path, files: list[Path]) -> ModelFile:
    headers = [_read_header(file) for file in files]
    for file, header in zip(files, headers, strict=True):
        check_end(file, header.size, header.tensors_end)
    return _describe(path, folder, headers)


def _read_header(path: Path) -> Header:
    """Read the JSON header of one file. Raises ValidationFailed (NOT_A_MODEL, TRUNCATED)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        at = Cursor(file, size)
        try:
            length = at.unpack(U64)
            if length > MAX_HEADER:
                raise not_a_model(
                    path, f"its header states a length of {length} bytes; at most {MAX_HEADER} are allowed"
                )
            text = at.take(length)
        except PastTheEnd:
            raise truncated(path, "the file ends within its header") from None
    try:
        entries = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        tensors = {name: msgspec.json.decode(entry, type=Tensor) for name, entry in entries.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as fault:
        raise not_a_model(path, f"its header is not safetensors JSON ({fault})") from None
    for name, tensor in tensors.items():
        if not _fits(tensor):
            raise not_a_model(path, f"the offsets of the tensor {name[:80]!r} do not fit its shape")
    return Header(size, tensors, 8 + length + max((t.data_offsets[1] for t in tensors.values()), default=0))


def _fits(tensor: Tensor) -> bool:
    """Return whether a tensor's offsets fit its shape; an unknown type needs at least one bit per element."""
    begin, end = tensor.data_offsets
    if not 0 <= begin <= end or len(tensor.shape) > MAX_DIMS or any(side < 0 for side in tensor.shape):
        return False
    bits, room = math.prod(tensor.shape) * BITS.get(tensor.dtype, 1), (end - begin) * 8
    return bits == room if tensor.dtype in BITS else bits <= room


def _describe(path: Path, folder: Path, headers: list[Header]) -> ModelFile:
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
        name=path.stem if path.is_file() else path.name,
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


def _chat_template(folder: Path) -> str:
    return " ".join(_text(folder / name) for name in ("chat_template.jinja", "tokenizer_config.json"))


def _text(path: Path) -> str:
    """Return the text of a small file; "" if it is missing or too large, because the file only improves a guess."""
    if not path.is_file() or path.stat().st_size > MAX_CONFIG:
        return ""
    return path.read_text("utf-8", "replace")


@dataclass(frozen=True)
class Config:
    """A config.json or a diffusers model_index.json. A vision model's config nests the numbers of the text model."""

    values: dict[str, object]

    @classmethod
    def of(cls, folder: Path) -> Config:
        """Read the config of a folder. A missing or invalid config counts as empty."""
        text = _text(folder / "config.json") or _text(folder / "model_index.json")
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
