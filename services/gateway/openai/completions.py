"""What OpenAI's completions have and engines do not: their shape of log probabilities, `echo` and `suffix`. Pure.

Source: the OpenAI API reference, legacy completions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aima_core.errors import ValidationFailed
from services.gateway.openai.requests import CompletionRequest


def check_completion(body: CompletionRequest) -> None:
    """Raise ValidationFailed for a field that no engine honours. An engine would ignore it, and the answer be wrong."""
    for field, given, expected in (
        ("echo", body.echo, "false: the engines do not repeat the prompt"),
        ("suffix", body.suffix, "no value: the engines do not fill in the middle"),
        ("logprobs", body.logprobs is not None and body.stream, "no value with stream: true; ask for a whole answer"),
    ):
        if given:
            raise ValidationFailed(f"{field}: expected {expected}", fields=[{"field": field, "expected": expected}])


def in_completions_shape(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer whose choices have `logprobs` in the shape of completions; engines use the shape of chats."""
    for choice in answer.get("choices") or ():
        logprobs = choice.get("logprobs")
        if isinstance(logprobs, dict) and isinstance(content := logprobs.get("content"), list):
            choice["logprobs"] = _in_shape(content)
    return answer


def _in_shape(content: list[Mapping[str, Any]]) -> dict[str, Any]:
    offsets, offset = [], 0
    for entry in content:
        offsets.append(offset)
        offset += len(entry["token"])
    return {
        "tokens": [entry["token"] for entry in content],
        "token_logprobs": [entry["logprob"] for entry in content],
        "top_logprobs": [
            {top["token"]: top["logprob"] for top in entry.get("top_logprobs") or ()} for entry in content
        ],
        "text_offset": offsets,
    }
