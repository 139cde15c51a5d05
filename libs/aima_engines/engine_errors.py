"""Converts the errors of engines into AimaErrors.

An engine's message may quote the request. So AIMA sends the message only to the client, never to logs or events.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from aima_core.errors import AimaError, ExecutionFailed, RateLimited, Unavailable, ValidationFailed
from aima_engines.decoding import decoded

_CONTEXT_TYPE = "exceed_context_size_error"  # of llama.cpp
# vLLM and SGLang: "maximum context length is 4096 tokens"; older llama.cpp: "available context size (4096 tokens)"
_CONTEXT = re.compile(r"maximum context length (?:is|of) ([0-9]{1,9})|context size \(([0-9]{1,9})", re.IGNORECASE)
_MAX_MESSAGE = 500  # characters; a longer message of an engine is cut


def engine_gone(*, begun: bool) -> Unavailable:
    """Return the error for an engine that closed the connection; `begun`: whether a part of the answer had arrived."""
    return Unavailable(
        "the engine closed the connection in the middle of the request", reason="ENGINE_GONE", begun=begun
    )


def bad_answer() -> ExecutionFailed:
    """Return the error for an answer that cannot be parsed."""
    return ExecutionFailed("the engine's answer does not follow the OpenAI dialect", reason="BAD_ANSWER")


def empty_answer() -> ExecutionFailed:
    """Return the error for an empty answer to a request for a file, such as audio."""
    return ExecutionFailed("the engine's answer is empty", reason="BAD_ANSWER")


def answer_too_large(limit: int) -> ExecutionFailed:
    """Return the error for an answer, or an event of an answer, that has more than `limit` bytes."""
    return ExecutionFailed(
        f"the engine's answer is larger than the limit of {limit} bytes", reason="ANSWER_TOO_LARGE", limit=limit
    )


def engine_failed(error: Any) -> ExecutionFailed:
    """Return the error for an engine's answer that contains an error."""
    return ExecutionFailed(f"the engine failed{_suffix(_message(error))}", reason="ENGINE_FAILED")


def error_in(body: bytes) -> ExecutionFailed:
    """Return the error for an unusable answer with status 2xx: the error in the answer, or else `bad_answer()`."""
    answer = decoded(msgspec.json.decode, body)
    error = answer.get("error") if isinstance(answer, dict) else None
    return bad_answer() if error is None else engine_failed(error)


def refusal(status: int, body: bytes) -> AimaError:
    """Return the error for an HTTP status other than 2xx, with the engine's message from the body."""
    why = _suffix(_message_of(body))
    match status:
        case 429:
            return RateLimited(f"the engine is busy{why}", reason="ENGINE_BUSY", retry_after=1)
        case 503:
            return Unavailable(f"the engine is not ready{why}", reason="ENGINE_LOADING", retry_after=1)
        case 405 | 501:  # 405: the engine does not have the HTTP method; 501: nor the function
            return ValidationFailed(f"the engine does not support this{why}", reason="ENGINE_REFUSED", status=status)
        case 400 | 404 | 409 | 413 | 414 | 415 | 422:
            return _context_exceeded(body) or ValidationFailed(
                f"the engine refused the request{why}", reason="ENGINE_REFUSED", status=status
            )
        case _:
            return ExecutionFailed(f"the engine failed{why}", reason="ENGINE_FAILED", status=status)


def may_be_the_requests_fault(error: ExecutionFailed) -> bool:
    """Whether the engine refused a request with a status that blames the engine, such as 500.

    Engines use such a status also for requests that they cannot process.
    """
    return error.reason == "ENGINE_FAILED" and error.details.get("status", 0) >= 500


def fault_of_request(error: ExecutionFailed) -> ValidationFailed:
    """Return the error for a request that the engine fails, while it answers other requests."""
    return ValidationFailed(
        f"{error.message}; the engine answers other requests, so the cause is this request",
        reason="REQUEST_FAILED",
        status=error.details.get("status"),
    )


def _context_exceeded(body: bytes) -> ValidationFailed | None:
    """Return the error for a prompt that is longer than the model's context; None for any other refusal.

    llama.cpp has a type for it, with both numbers; other engines write the limit into their message.
    """
    answer = decoded(msgspec.json.decode, body)
    error = answer.get("error", answer) if isinstance(answer, dict) else None
    fields = error if isinstance(error, dict) else {}
    message = _message(error)
    limit = fields.get("n_ctx")
    if fields.get("type") != _CONTEXT_TYPE and not (match := _CONTEXT.search(message)):
        return None
    if not isinstance(limit, int) and (match := _CONTEXT.search(message)):
        limit = int(match[1] or match[2])
    most = f" of {limit} tokens" if isinstance(limit, int) else ""
    return ValidationFailed(
        f"the prompt does not fit into the model's context{most}{_suffix(message)}",
        reason="CONTEXT_LENGTH_EXCEEDED",
        limit=limit,
    )


def _suffix(message: str) -> str:
    return f": {message}" if message else ""


def _message_of(body: bytes) -> str:
    answer = decoded(msgspec.json.decode, body)
    return _message(answer.get("error", answer)) if isinstance(answer, dict) else ""


def _message(error: Any) -> str:
    text = error.get("message") if isinstance(error, dict) else error
    return "" if text is None else str(text)[:_MAX_MESSAGE]
