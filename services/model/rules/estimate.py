"""Estimates the memory to serve a model from its header. Pure; all figures are bytes."""

from __future__ import annotations

import msgspec

from services.model.headers.model_file import ModelFile
from services.model.units import ModelType, is_opaque

MIB = 1 << 20
PROCESS = 64 * MIB  # an engine's code and threads, before it loads a model
BATCH = 512  # tokens that llama.cpp evaluates at once (n_ubatch)
ACTIVATIONS = 16  # concurrent buffers of a batch, each as wide as the embedding: q, k, v, two of four widths, ...
UNKNOWN_KV = 0.25  # of the weights per 8192 tokens if the header has no shape: as a 7B model of 32 full heads in f16
GENERATES: tuple[ModelType, ...] = ("llm", "vlm")  # types with a KV cache

MIN_CONTEXT = 2048  # tokens: the minimum for a conversation
USEFUL_CONTEXT = 8192  # tokens: enough for most requests
USEFUL_SLOTS = 4  # requests at once


class Estimate(msgspec.Struct, frozen=True):
    """The memory of one engine that serves one model, in bytes."""

    weights: int
    kv_cache: int
    overhead: int
    total: int


def estimate(file: ModelFile, context_length: int, slots: int = 1, kv_bytes: float = 2) -> Estimate:
    """Return the memory for `slots` requests at once of `context_length` tokens each.

    KV cache = slots x context x layers x kv_heads x (key_length + value_length) x kv_bytes. The cache has one key
    vector and one value vector per token, layer and KV head (Ainslie et al. 2023, "GQA", arXiv:2305.13245). llama.cpp
    allocates the same bytes in llama-kv-cache. `kv_bytes`: bytes of one element, 2 for f16, 1.0625 for q8_0. Sliding
    windows are ignored, so the result is an upper bound for models that have them.

    If AIMA does not read the format, the estimate is the size of the files plus the memory of an empty process.

    Overhead = the process, plus the logits (vocabulary, f32) and the activations of one batch of 512 tokens.
    """
    weights = file.size
    width = file.embedding_length or 0
    generates = file.type in GENERATES and not is_opaque(file.format)
    logits = file.vocabulary or 0 if generates else 0
    overhead = PROCESS + BATCH * 4 * (logits + ACTIVATIONS * width)
    kv_cache = _kv_cache(file, context_length * slots, kv_bytes) if generates else 0
    return Estimate(weights, kv_cache, overhead, weights + kv_cache + overhead)


def _kv_cache(file: ModelFile, tokens: int, kv_bytes: float) -> int:
    if file.layers is None or file.kv_heads is None or file.key_length is None or file.value_length is None:
        return int(file.size * UNKNOWN_KV * tokens / 8192 * kv_bytes / 2)
    return int(tokens * file.layers * file.kv_heads * (file.key_length + file.value_length) * kv_bytes)


def context_within(file: ModelFile, tokens: int) -> int:
    """Return `tokens`, limited to the context that the model was trained for."""
    return min(file.context_length or tokens, tokens)


def memory_min(file: ModelFile, context_length: int | None = None, slots: int | None = None) -> int:
    """Return the bytes to serve `slots` requests at once (default 1) of `context_length` tokens (default 2048)."""
    return estimate(file, context_length or context_within(file, MIN_CONTEXT), slots or 1).total


def memory_recommended(file: ModelFile, context_length: int | None = None, slots: int | None = None) -> int:
    """Return the bytes to serve `slots` requests at once (default 4) of `context_length` tokens (default 8192)."""
    return estimate(file, context_length or context_within(file, USEFUL_CONTEXT), slots or USEFUL_SLOTS).total
