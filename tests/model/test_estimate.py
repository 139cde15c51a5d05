from __future__ import annotations

from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.model.headers.formats import ModelFile
from services.model.rules.estimate import Estimate, estimate, memory_min, memory_recommended
from services.model.units import ModelType

SMOLLM2 = ModelFile(
    format="gguf",
    type="llm",
    name="SmolLM2",
    context_length=8192,
    layers=30,
    embedding_length=576,
    heads=9,
    kv_heads=3,
    key_length=64,
    value_length=64,
    vocabulary=49152,
    size=98_362_432,
    tensors_end=98_362_432,
)
OVERHEAD = 64 * 1024**2 + 512 * 4 * (49152 + 16 * 576)


def test_the_cache_holds_a_key_and_a_value_for_each_token_layer_and_head() -> None:
    cache = 8192 * 30 * 3 * (64 + 64) * 2
    assert cache == 188_743_680
    assert estimate(SMOLLM2, 8192) == Estimate(98_362_432, cache, OVERHEAD, 98_362_432 + cache + OVERHEAD)


def test_keys_and_values_of_different_lengths_are_counted_apart() -> None:
    model = msgspec.structs.replace(SMOLLM2, key_length=192, value_length=128)
    assert estimate(model, 1000).kv_cache == 1000 * 30 * 3 * (192 + 128) * 2


def test_each_slot_has_a_cache_of_its_own() -> None:
    assert estimate(SMOLLM2, 2048, slots=4).kv_cache == 4 * estimate(SMOLLM2, 2048).kv_cache


def test_a_quantised_cache_is_smaller() -> None:
    assert estimate(SMOLLM2, 8192, kv_bytes=1.0625).kv_cache == 100_270_080


def test_an_embedding_model_keeps_no_cache_and_no_logits() -> None:
    model = msgspec.structs.replace(SMOLLM2, type="embedding")
    assert estimate(model, 512) == Estimate(
        98_362_432, 0, 64 * 1024**2 + 512 * 4 * 16 * 576, 98_362_432 + 64 * 1024**2 + 512 * 4 * 16 * 576
    )


def test_without_a_shape_the_cache_is_a_share_of_the_weights() -> None:
    bare = ModelFile(format="safetensors", type="llm", name="bare", size=8_000_000, tensors_end=8_000_000)
    assert estimate(bare, 8192).kv_cache == 2_000_000
    assert estimate(bare, 4096, slots=4).kv_cache == 4_000_000


def test_the_least_memory_is_one_request_of_2048_tokens() -> None:
    assert memory_min(SMOLLM2) == estimate(SMOLLM2, 2048).total


def test_the_recommended_memory_is_four_requests_of_8192_tokens() -> None:
    long = msgspec.structs.replace(SMOLLM2, context_length=131_072)
    assert memory_recommended(long) == estimate(long, 8192, slots=4).total


def test_no_more_context_is_counted_than_the_model_was_trained_for() -> None:
    short = msgspec.structs.replace(SMOLLM2, context_length=512)
    assert memory_min(short) == estimate(short, 512).total
    assert memory_recommended(short) == estimate(short, 512, slots=4).total


@pytest.mark.parametrize("kind", get_args(ModelType))
@given(context=st.integers(1, 1 << 20), slots=st.integers(1, 64))
def test_an_estimate_is_the_sum_of_its_parts_and_never_below_the_weights(kind: str, context: int, slots: int) -> None:
    model = msgspec.convert(msgspec.to_builtins(SMOLLM2) | {"type": kind}, ModelFile)
    found = estimate(model, context, slots)
    assert found.total == found.weights + found.kv_cache + found.overhead >= model.size
