"""The fields of OpenAI requests that the gateway checks. `fields.py` decides which fields the engine gets.

Source: the OpenAI API reference.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from aima_core.errors import ValidationFailed

Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]  # engines count in 32 bits
Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
ModelName = Annotated[str, Meta(min_length=1, max_length=120)]


class Message(msgspec.Struct):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[dict[str, Any]] | None = None


class StreamOptions(msgspec.Struct):
    """The client's options for a stream."""

    include_usage: bool = False


class Sampling(msgspec.Struct, kw_only=True):
    """The fields that chat completions and completions share."""

    model: ModelName
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Positive | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Meta(max_length=16)] | None = None

    @property
    def answers(self) -> int:
        """Number of answers requested."""
        return self.n or 1


class ChatRequest(Sampling, kw_only=True):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Positive | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class CompletionRequest(Sampling, kw_only=True):
    """The body of `/v1/completions`."""

    prompt: str | list[str | int | list[int]]
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: str | None = None

    @property
    def answers(self) -> int:
        """The number of requested answers: `n` for each prompt. A list of token numbers is one prompt."""
        several = isinstance(self.prompt, list) and not any(isinstance(part, int) for part in self.prompt)
        return (self.n or 1) * (len(self.prompt) if several else 1)


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """The body of `/v1/embeddings`."""

    model: ModelName
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Positive | None = None

    def explain(self, error: ValidationFailed) -> ValidationFailed:
        """Return the engine's refusal; if the input has token numbers, with the advice to send texts."""
        parts = self.input if isinstance(self.input, list) else []
        if error.reason != "ENGINE_REFUSED" or not any(isinstance(part, int | list) for part in parts):
            return error
        expected = "texts: the engine of this model does not accept token numbers"
        return ValidationFailed(
            f"input: expected {expected} ({error.message})",
            reason="TOKENS_NOT_SUPPORTED",
            fields=[{"field": "input", "expected": expected}],
        )
