"""The header of a GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), versions 2 and 3.

The constants are from the `gguf` package. This module does not use the package's `GGUFReader`, which stores every token
of a vocabulary and does not check the length of an array. A file of forty bytes can block `GGUFReader` forever.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import IO

from gguf.constants import GGML_QUANT_SIZES, GGUFValueType

from services.model.headers.cursor import U32, U64, Cursor, PastTheEnd, TooLong
from services.model.headers.format_table import FORMATS
from services.model.headers.model_file import not_a_model, truncated, unsupported
from services.model.paths.model_path import ModelPath

MAGIC = FORMATS["gguf"].magic or b""
MAX_HEADER = 256 << 20  # bytes; the largest vocabularies with merges need some twenty MB
MAX_STORED = 32 << 20  # bytes of memory for all stored keys, texts and numbers
NUMBER = 40  # bytes of memory for a stored number
MAX_KEYS = 65_536  # real files have less than a hundred
MAX_TENSORS = 262_144  # the largest mixture-of-experts models have some thousands per part
MAX_KEY = 65_535  # bytes, the format's own limit
MAX_TEXT = 4 << 20  # bytes of a stored string; chat templates have some ten kB
MAX_STRINGS = 8_000_000  # elements of all string arrays; large vocabularies with merges have less than a million
MAX_KEPT = 4096  # elements of a stored number array: one per layer
MAX_DIMS = 4  # GGML_MAX_DIMS

_FORMATS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}
SCALARS = {int(kind): struct.Struct(f"<{letter}") for kind, letter in _FORMATS.items()}
STRING, ARRAY = int(GGUFValueType.STRING), int(GGUFValueType.ARRAY)

TYPE_SIZES: dict[int, tuple[int, int]] = {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}

Value = int | float | bool | str | tuple[int | float, ...]


@dataclass
class Header:
    """The header of one part: its keys, its array lengths and the totals of its tensors."""

    size: int
    keys: dict[str, Value] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    tensors: int = 0
    rank_head: bool = False
    parameters: int = 0
    bytes_by_type: Counter[int] = field(default_factory=Counter)
    tensors_end: int = 0

    def number(self, key: str) -> int | None:
        """Return a count from the header; None if the count is missing or invalid.

        If the header has one count per layer, return their mean, rounded up. The mean times the number of layers is
        then at least the sum of the counts.
        """
        value = self.keys.get(key)
        if isinstance(value, tuple) and value and all(isinstance(item, int) for item in value):
            value = math.ceil(sum(value) / len(value))
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31:
            return value
        return None

    @property
    def part(self) -> int:
        """The number of this part of a split model; the first part has the number 1."""
        return (self.number("split.no") or 0) + 1

    @property
    def parts(self) -> int:
        """The number of parts of the model; 1 if the model is not split."""
        return max(self.number("split.count") or 1, 1)

    def text(self, key: str) -> str | None:
        """Return a text from the header; None if the text is missing or empty."""
        value = self.keys.get(key)
        return value if isinstance(value, str) and value else None


def read_header(path: ModelPath) -> Header:
    """Read a GGUF file up to its tensor data. Raises ValidationFailed (NOT_A_MODEL, TRUNCATED, UNSUPPORTED_FORMAT)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            return _Parser(path, file, size).header()
        except PastTheEnd:
            raise truncated(path, "the file ends within its header") from None
        except TooLong:
            raise not_a_model(path, f"its header has more than {MAX_HEADER} bytes") from None


class _Parser:
    def __init__(self, path: ModelPath, file: IO[bytes], size: int) -> None:
        self.path, self.at, self.result = path, Cursor(file, size, limit=MAX_HEADER), Header(size)
        self.strings = self.stored = 0

    def header(self) -> Header:
        if self.at.take(4) != MAGIC:
            raise not_a_model(self.path, "it does not start with the GGUF magic")
        version = self.at.unpack(U32)
        if version not in (2, 3):
            raise unsupported(self.path, f"its GGUF version is {version}, or the file is big-endian")
        tensors, keys = self.at.unpack(U64), self.at.unpack(U64)
        if keys > MAX_KEYS or tensors > MAX_TENSORS:
            raise not_a_model(self.path, f"its header states too many keys ({keys}) or tensors ({tensors})")
        for _ in range(keys):
            self.key()
        ends = [self.tensor() for _ in range(tensors)]
        align = self.result.keys.get("general.alignment", 32)
        if not isinstance(align, int) or align < 1 or align & (align - 1):
            raise not_a_model(self.path, "its alignment is not a power of two")
        start = -(-self.at.offset // align) * align
        self.result.tensors = tensors
        self.result.tensors_end = start + max(ends) if ends else self.at.offset
        return self.result

    def string(self, limit: int) -> str:
        length = self.at.unpack(U64)
        if length > limit:
            # If the length exceeds the file, `skip` raises PastTheEnd: the file is incomplete.
            self.at.skip(length)
            raise not_a_model(self.path, f"its header has a text of {length} bytes, which is too long")
        return self.at.take(length).decode("utf-8", "replace")

    def store(self, size: int) -> None:
        """Count `size` bytes of memory that the header needs. Raises ValidationFailed if it needs too many."""
        self.stored += size
        if self.stored > MAX_STORED:
            raise not_a_model(self.path, f"the keys and values of its header need more than {MAX_STORED} bytes")

    def key(self) -> None:
        key = self.string(MAX_KEY)
        self.store(len(key) + 2 * NUMBER)
        kind = self.at.unpack(U32)
        if key in self.result.keys or key in self.result.lengths:
            raise not_a_model(self.path, f"its header has the key {key[:80]!r} twice")
        if kind == ARRAY:
            self.array(key)
        elif kind == STRING:
            text = self.string(MAX_TEXT)
            self.store(len(text))
            self.result.keys[key] = text
        else:
            self.result.keys[key] = self.at.unpack(self.scalar(kind))

    def scalar(self, kind: int) -> struct.Struct:
        if kind not in SCALARS:
            raise not_a_model(self.path, f"the value type {kind} does not exist")
        return SCALARS[kind]

    def array(self, key: str) -> None:
        kind, length = self.at.unpack(U32), self.at.unpack(U64)
        self.result.lengths[key] = length
        if kind == STRING:
            self.strings += length
            if self.strings > MAX_STRINGS:
                raise not_a_model(self.path, f"its header has more than {MAX_STRINGS} strings")
            self.at.skip_strings(length)
            return
        layout = self.scalar(kind)  # nested arrays are refused: the format allows them, but no engine reads them
        if length > MAX_KEPT:
            self.at.skip(length * layout.size)
        else:
            self.store(length * NUMBER)
            self.result.keys[key] = tuple(self.at.unpack(layout) for _ in range(length))

    def tensor(self) -> int:
        name = self.string(MAX_KEY)
        dims = self.at.unpack(U32)
        if not 1 <= dims <= MAX_DIMS:
            raise not_a_model(self.path, f"it has a tensor of {dims} dimensions; 1 to {MAX_DIMS} are allowed")
        elements = math.prod(self.at.unpack(U64) for _ in range(dims))
        kind, offset = self.at.unpack(U32), self.at.unpack(U64)
        if kind not in TYPE_SIZES:
            raise unsupported(self.path, f"the tensor type {kind} is unknown")
        block, width = TYPE_SIZES[kind]
        if elements % block:
            raise not_a_model(self.path, f"a tensor has {elements} elements, not a multiple of its block size {block}")
        size = elements // block * width
        self.result.parameters += elements
        self.result.bytes_by_type[kind] += size
        self.result.rank_head |= name in ("cls.weight", "cls.output.weight")
        return offset + size
