"""Reads the vectors in an engine's answer, and checks that the vectors have the length that the client requests.

The engine receives the client's field `dimensions`, but ignores the field if its model has vectors of one length only.
Source: the OpenAI API reference (embeddings).
"""

from __future__ import annotations

import base64

import msgspec

from aima_core.errors import ValidationFailed
from aima_engines.decoding import decoded
from aima_engines.engine_answer import EngineAnswer, TokenUsage
from aima_engines.engine_errors import bad_answer

_FLOAT = 4  # bytes of each number in a base64 vector


class Vector(msgspec.Struct):
    """The vector of one text."""

    embedding: msgspec.Raw
    index: int = 0


class Vectors(msgspec.Struct):
    """An engine's answer to a request for embeddings."""

    data: list[Vector]
    usage: TokenUsage | None = None


_read = msgspec.json.Decoder(Vectors).decode
_numbers = msgspec.json.Decoder(list[float] | str).decode


async def vectors(answer: EngineAnswer, model: str, dimensions: int | None = None) -> tuple[Vectors, bytes]:
    """Return an engine's answer, decoded and as bytes; store its usage in `answer`.

    Raises ExecutionFailed if the answer is invalid, ValidationFailed if a vector's length differs from `dimensions`.
    """
    body = await answer.whole()
    embeddings = decoded(_read, body)
    if embeddings is None:
        raise bad_answer()
    answer.usage = embeddings.usage or TokenUsage()
    lengths = (_length(vector.embedding) for vector in embeddings.data if dimensions)
    length = next((length for length in lengths if length != dimensions), None)
    if length is not None:
        raise ValidationFailed(
            f"dimensions: the vectors of {model} have {length} numbers, not {dimensions};"
            f" send {length} or leave dimensions out",
            reason="ENGINE_REFUSED",
            fields=[{"field": "dimensions", "expected": f"{length}, or no value: the model has no other length"}],
        )
    return embeddings, body


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
