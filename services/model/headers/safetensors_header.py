"""The header of one safetensors file (https://huggingface.co/docs/safetensors)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

from services.model.headers.cursor import U64, Cursor, PastTheEnd
from services.model.headers.model_file import auxiliary, not_a_model, truncated
from services.model.paths.model_path import ModelPath

MAX_HEADER = 100_000_000  # bytes, the reference implementation's own limit
MAX_SEPARATORS = 3_000_000  # colons and commas, which bound the memory of the decoded header: ten for each tensor
MAX_DIMS = 32  # dimensions of a tensor; limits the time to multiply them
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16}
BITS |= {"I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64}
ADAPTER = ("lora_", ".lora.", "lokr_", "hada_")  # in the names of all tensors of an adapter


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


def read_header(path: ModelPath) -> Header:
    """Read the JSON header of one file. Raises ValidationFailed (NOT_A_MODEL, TRUNCATED)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        at = Cursor(file, size)
        try:
            length = at.unpack(U64)
            if length > MAX_HEADER:
                raise not_a_model(path, f"its header states a length of {length} bytes")
            text = at.take(length)
        except PastTheEnd:
            raise truncated(path, "the file ends within its header") from None
    if text.count(b":") + text.count(b",") > MAX_SEPARATORS:
        raise not_a_model(path, "its header has too many entries")
    try:
        entries = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        tensors = {name: msgspec.json.decode(entry, type=Tensor) for name, entry in entries.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as fault:
        raise not_a_model(path, f"its header is not safetensors JSON ({fault})") from None
    for name, tensor in tensors.items():
        if not _fits(tensor):
            raise not_a_model(path, f"the offsets of the tensor {name[:80]!r} do not fit its shape")
    if tensors and all(any(part in name.lower() for part in ADAPTER) for name in tensors):
        raise auxiliary(path, "an adapter (LoRA) of another model")
    return Header(size, tensors, 8 + length + max((t.data_offsets[1] for t in tensors.values()), default=0))


def _fits(tensor: Tensor) -> bool:
    """Return whether a tensor's offsets fit its shape; an unknown type needs at least one bit per element."""
    begin, end = tensor.data_offsets
    if not 0 <= begin <= end or len(tensor.shape) > MAX_DIMS or any(side < 0 for side in tensor.shape):
        return False
    bits, room = math.prod(tensor.shape) * BITS.get(tensor.dtype, 1), (end - begin) * 8
    return bits == room if tensor.dtype in BITS else bits <= room
