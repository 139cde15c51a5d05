"""Decides which fields of an OpenAI request the engine gets, and checks what the engine would not check. Pure.

Engines have names of their own for what the gateway checks and counts: `n_predict` is llama.cpp's `max_tokens`. So the
engine gets only OpenAI's fields and the extensions below. All other fields are left out, and the response header
`Aima-Ignored` names them. Source: the OpenAI API reference; llama.cpp's server README.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw

from aima_core.errors import ValidationFailed

IGNORED = "Aima-Ignored"
"""The response header that names the fields that the engine did not get."""
_OPENAI = frozenset(
    {
        *("model", "messages", "prompt", "input", "stream", "stream_options", "max_tokens", "temperature", "top_p"),
        *("n", "stop", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "seed"),
        *("response_format", "tools", "tool_choice", "parallel_tool_calls", "encoding_format", "dimensions"),
    }
)
# fields of OpenAI's service that change nothing here: accounting, caching, safety, hints
_WITHOUT_EFFECT = frozenset(
    {
        *("user", "store", "metadata", "service_tier", "prompt_cache_key", "prompt_cache_retention"),
        *("safety_identifier", "verbosity", "prediction", "max_completion_tokens", "best_of", "reasoning_effort"),
    }
)
_LARGEST_GRAMMAR = 64 * 1024  # characters
_PARTS = ("text", "image_url", "refusal")  # parts of a message that some model can read


class Extensions(msgspec.Struct):
    """The fields of engines that the gateway passes on, with their bounds."""

    top_k: Annotated[int, Meta(ge=-1, le=1_000_000)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Meta(ge=0, le=10)] | None = None
    repetition_penalty: Annotated[float, Meta(ge=0, le=10)] | None = None
    repeat_last_n: Annotated[int, Meta(ge=-1, le=1_000_000)] | None = None
    grammar: Annotated[str, Meta(max_length=_LARGEST_GRAMMAR)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_format: Literal["none", "auto", "deepseek", "deepseek-legacy"] | None = None
    n_probs: Annotated[int, Meta(ge=0, le=20)] | None = None


_EXTENSIONS = frozenset(Extensions.__struct_fields__) - {"n_probs"}  # OpenAI's name for it is top_logprobs


def for_engine(fields: Mapping[str, Raw]) -> tuple[dict[str, Raw], list[str]]:
    """Return the fields that the engine gets, and the names of the fields that are left out.

    A field that is null is absent.
    """
    given = {name: value for name, value in fields.items() if bytes(value).strip() != b"null"}
    kept = {name: value for name, value in given.items() if name in _OPENAI or name in _EXTENSIONS}
    return kept, sorted(given.keys() - kept.keys() - _WITHOUT_EFFECT)


def refuse_unreadable(messages: Sequence[Mapping[str, Any]]) -> None:
    """Check what an engine would answer with an error of its own.

    Raises ValidationFailed for a part of a type that no model reads, and for arguments of a tool call that are not a
    JSON object. The arguments are text that a model wrote, and a history may be cut off.
    """
    for field, expected in _faults(messages):
        raise _refusal(field, expected)


def _faults(messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for number, message in enumerate(messages):
        content = message.get("content")
        for index, part in enumerate(content if isinstance(content, list) else ()):
            if (kind := part.get("type")) not in _PARTS:
                yield f"messages.{number}.content.{index}", f"text or an image; no model here reads {kind}"
        calls = message.get("tool_calls")
        for index, call in enumerate(calls if isinstance(calls, list) else ()):
            function = call.get("function") if isinstance(call, dict) else None
            arguments = function.get("arguments") if isinstance(function, dict) else None
            if isinstance(arguments, str) and not _is_object(arguments):
                yield f"messages.{number}.tool_calls.{index}.function.arguments", "a JSON object, as text"


def _is_object(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text or "{}"), dict)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False


def _refusal(field: str, expected: str) -> ValidationFailed:
    return ValidationFailed(f"{field}: expected {expected}", fields=[{"field": field, "expected": expected}])
