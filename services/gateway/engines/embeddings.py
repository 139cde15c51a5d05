"""Vectors as an engine of OpenAI's dialect answers them, and whether they are as long as a client wants them.

Source: the OpenAI API reference (embeddings). `dimensions` goes on to the engine, and one whose model has vectors of
one length only may ignore it.
"""

from __future__ import annotations

import base64

import msgspec

from aima_core.errors import ValidationFailed
from services.gateway.engines.engine_errors import bad_answer
from services.gateway.engines.proxying import ProxiedAnswer, TokenUsage
from services.gateway.engines.sse_parser import decoded

_FLOAT = 4  # bytes of a number in a vector that comes in base64


class Vector(msgspec.Struct):
    """A text as an engine embeds it."""

    embedding: msgspec.Raw


class Vectors(msgspec.Struct):
    """What an engine answers to texts."""

    data: list[Vector]
    usage: TokenUsage = msgspec.field(default_factory=TokenUsage)


_read = msgspec.json.Decoder(Vectors).decode
_numbers = msgspec.json.Decoder(list[float] | str).decode


async def vectors(carried: ProxiedAnswer, model: str, dimensions: int | None = None) -> tuple[Vectors, bytes]:
    """Return what an engine answers, and the same as it came; note what it used.

    Raises ValidationFailed when its vectors have not so many `dimensions`, ExecutionFailed when nobody can read it.
    """
    said = await carried.whole()
    found = decoded(_read, said)
    if found is None:
        raise bad_answer()
    carried.usage = found.usage
    lengths = (_length(vector.embedding) for vector in found.data if dimensions)
    other = next((length for length in lengths if length != dimensions), None)
    if other is not None:
        raise ValidationFailed(
            f"dimensions: the vectors of {model} have {other} numbers, not {dimensions}",
            reason="ENGINE_REFUSED",
            fields=[{"field": "dimensions", "expected": f"{other}, or nothing: other lengths are not made"}],
        )
    return found, said


def _length(vector: msgspec.Raw) -> int:
    numbers = decoded(_numbers, vector)
    if numbers is None:
        raise bad_answer()
    if isinstance(numbers, list):
        return len(numbers)
    try:
        return len(base64.b64decode(numbers, validate=True)) // _FLOAT
    except ValueError:
        raise bad_answer() from None
