"""The facts in the header of a model file, and the errors of all formats."""

from __future__ import annotations

import msgspec

from aima_core.errors import ValidationFailed
from services.model.paths.model_path import ModelPath
from services.model.units import ModelType


class ModelFile(msgspec.Struct, frozen=True, kw_only=True):
    """The facts in the header of a model's weights, which may be one file or several.

    `size` and `tensors_end`: in bytes. `context_length`: in tokens. The lengths of embeddings, keys and values: in
    elements of one vector.
    """

    format: str
    type: ModelType
    name: str
    architecture: str | None = None
    parameters: int | None = None
    quantization: str | None = None
    context_length: int | None = None
    layers: int | None = None
    embedding_length: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    key_length: int | None = None
    value_length: int | None = None
    vocabulary: int | None = None
    tools: bool = False
    """Whether the chat template contains `tools`. If it does not, engines ignore the tools of a request."""
    size: int
    tensors_end: int
    """Bytes of headers and tensors. A file with fewer bytes is truncated."""


class Auxiliary(ValidationFailed):
    """The file belongs to a model and is no model itself: a projector, an adapter, an importance matrix."""


class SplitPart(ValidationFailed):
    """The file is one part of a split model, and its name does not lead to the other parts."""

    number = 0
    """The number of the part; the first part has the number 1."""
    count = 0
    """The number of all parts."""


def not_a_model(path: ModelPath, why: str) -> ValidationFailed:
    """Return the error for a file without readable weights."""
    return ValidationFailed(f"{path.name} is not a model: {why}", reason="NOT_A_MODEL", path=str(path))


def auxiliary(path: ModelPath, what: str) -> Auxiliary:
    """Return the error for a file that only belongs to a model. `what` it is."""
    return Auxiliary(f"{path.name} is not a model: it is {what}", reason="NOT_A_MODEL", path=str(path))


def unsupported(path: ModelPath, why: str) -> ValidationFailed:
    """Return the error for a model file in an unsupported variant."""
    return ValidationFailed(f"{path.name} is not supported: {why}", reason="UNSUPPORTED_FORMAT", path=str(path))


def truncated(path: ModelPath, why: str) -> ValidationFailed:
    """Return the error for an incomplete model."""
    return ValidationFailed(
        f"{path.name} is incomplete: {why}; pull or copy it again", reason="TRUNCATED", path=str(path)
    )


def one_part(path: ModelPath, number: int, count: int, remedy: str) -> SplitPart:
    """Return the error for a part of a split model without the other parts. `remedy`: what the caller can do."""
    message = f"{path.name} is incomplete: it is part {number} of {count} of a split model; {remedy}"
    error = SplitPart(message, reason="TRUNCATED", path=str(path))
    error.number, error.count = number, count
    return error


def check_end(path: ModelPath, size: int, tensors_end: int) -> None:
    """Raise ValidationFailed (TRUNCATED) if the tensors need more bytes than the file has."""
    if tensors_end > size:
        raise truncated(path, f"it has {size} bytes, its tensors need {tensors_end}")
