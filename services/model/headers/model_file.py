"""What a model file says about itself, and the refusals that every format shares."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from aima_core.errors import ValidationFailed

Format = Literal["gguf", "safetensors", "onnx", "e5s"]
ModelType = Literal["llm", "vlm", "asr", "tts", "embedding", "diffusion", "rerank", "detection"]


class ModelFile(msgspec.Struct, frozen=True, kw_only=True):
    """The header of a model's weights, in one file or in several. Sizes are bytes, lengths are tokens."""

    format: Format
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
    """Whether the chat template mentions `tools`; without it an engine ignores them in silence."""
    size: int
    tensors_end: int
    """The bytes that the tensors need, headers included; a file shorter than this is truncated."""


def not_a_model(path: Path, why: str) -> ValidationFailed:
    """Return the refusal of a file that holds no weights we can read."""
    return ValidationFailed(f"{path.name} is not a model: {why}", reason="NOT_A_MODEL", path=str(path))


def unsupported(path: Path, why: str) -> ValidationFailed:
    """Return the refusal of a real model file in a variant that we cannot read."""
    return ValidationFailed(f"{path.name} is not supported: {why}", reason="UNSUPPORTED_FORMAT", path=str(path))


def truncated(path: Path, why: str) -> ValidationFailed:
    """Return the refusal of a file that ends before its tensors do."""
    return ValidationFailed(f"{path.name} is truncated: {why}", reason="TRUNCATED", path=str(path))


def check_end(path: Path, size: int, tensors_end: int) -> None:
    """Raise TRUNCATED when the tensors need more bytes than there are."""
    if tensors_end > size:
        raise truncated(path, f"its tensors need {tensors_end} bytes, it has {size}")
