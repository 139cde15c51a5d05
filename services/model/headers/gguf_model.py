"""Reads a GGUF model: the headers of all its parts."""

from __future__ import annotations

from collections import Counter

from gguf.constants import GGMLQuantizationType, LlamaFileType

from services.model.headers.gguf import Header, read_header
from services.model.headers.gguf_parts import check_parts, check_role, has_projector, parts
from services.model.headers.guess import gguf_type
from services.model.headers.model_file import ModelFile, check_end, not_a_model
from services.model.paths.model_path import ModelPath


def read(path: ModelPath) -> ModelFile:
    """Read the headers of all parts. Raises ValidationFailed (NOT_A_MODEL, TRUNCATED, UNSUPPORTED_FORMAT)."""
    files = parts(path)
    headers = [read_header(file) for file in files]
    check_parts(files, headers)
    check_role(path, headers[0])
    for part, header in zip(files, headers, strict=True):
        check_end(part, header.size, header.tensors_end)
    return _describe(path, headers, has_projector(path))


def _describe(path: ModelPath, headers: list[Header], projector: bool) -> ModelFile:
    """Return the model that the headers of all parts describe. Only the first part has the keys.

    `projector`: whether the folder has an image or audio encoder. Raises ValidationFailed (NOT_A_MODEL).
    """
    first = headers[0]
    if not any(header.tensors for header in headers):
        raise not_a_model(path, "it has no tensors")
    arch = first.text("general.architecture")
    if arch is None:
        raise not_a_model(path, "its header has no general.architecture")
    embedding, heads = first.number(f"{arch}.embedding_length"), first.number(f"{arch}.attention.head_count")
    head_length = embedding // heads if embedding and heads else None
    kv_heads = first.number(f"{arch}.attention.head_count_kv")
    return ModelFile(
        format="gguf",
        type=gguf_type(arch, first.number(f"{arch}.pooling_type"), any(h.rank_head for h in headers), projector),
        name=first.text("general.name") or path.stem,
        architecture=arch,
        parameters=sum(header.parameters for header in headers),
        quantization=_quantization(headers),
        context_length=first.number(f"{arch}.context_length"),
        layers=first.number(f"{arch}.block_count"),
        embedding_length=embedding,
        heads=heads,
        kv_heads=heads if kv_heads is None else kv_heads,
        key_length=first.number(f"{arch}.attention.key_length") or head_length,
        value_length=first.number(f"{arch}.attention.value_length") or head_length,
        vocabulary=first.number(f"{arch}.vocab_size") or first.lengths.get("tokenizer.ggml.tokens"),
        tools="tools" in (first.text("tokenizer.chat_template") or ""),
        size=sum(header.size for header in headers),
        tensors_end=sum(header.tensors_end for header in headers),
    )


def _quantization(headers: list[Header]) -> str | None:
    """Return the quantisation that the header states ("Q4_K_M"), or else the tensor type with the most bytes."""
    declared = headers[0].number("general.file_type")
    names = {int(kind): str(kind.name) for kind in LlamaFileType if kind.name != "GUESSED"}
    if declared in names:
        return names[declared].removeprefix("MOSTLY_").removeprefix("ALL_")
    total: Counter[int] = sum((header.bytes_by_type for header in headers), Counter())
    return str(GGMLQuantizationType(total.most_common(1)[0][0]).name) if total else None
