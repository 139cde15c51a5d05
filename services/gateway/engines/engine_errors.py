"""What goes wrong with engines, as errors of ours. An engine's own words go to the client alone: they may quote it."""

from __future__ import annotations

from typing import Any

import msgspec

from aima_core.errors import AimaError, ExecutionFailed, RateLimited, Unavailable, ValidationFailed
from services.gateway.engines.sse_parser import decoded

_MOST_WORDS = 500  # characters of what an engine says


def gone(*, begun: bool) -> Unavailable:
    """Return the refusal of a request whose engine went away; `begun`: it had answered something."""
    return Unavailable("the engine went away in the middle of the request", reason="ENGINE_GONE", begun=begun)


def bad_answer() -> ExecutionFailed:
    """Return the refusal of an answer that nobody can read."""
    return ExecutionFailed("the engine's answer is not what its dialect says", reason="BAD_ANSWER")


def too_large(limit: int) -> ExecutionFailed:
    """Return the refusal of an answer that is larger than what is kept until all of it is there."""
    return ExecutionFailed(
        f"the engine's answer is larger than the {limit} bytes that are taken", reason="ANSWER_TOO_LARGE", limit=limit
    )


def failed(error: Any) -> ExecutionFailed:
    """Return what an engine says went wrong in the middle of an answer."""
    return ExecutionFailed(f"the engine failed{_told(_words(error))}", reason="ENGINE_FAILED")


def refusal(status: int, body: bytes) -> AimaError:
    """Return the error that an engine answers with."""
    told = _told(_words_of(body))
    match status:
        case 429:
            return RateLimited(f"the engine is busy{told}", reason="ENGINE_BUSY", retry_after=1)
        case 503:
            return Unavailable(f"the engine is not ready{told}", reason="ENGINE_LOADING", retry_after=1)
        case 501:
            return ValidationFailed(f"the engine cannot do this{told}", reason="ENGINE_REFUSED", status=status)
        case 400 | 404 | 405 | 413 | 415 | 422:
            return ValidationFailed(f"the engine refused the request{told}", reason="ENGINE_REFUSED", status=status)
        case _:
            return ExecutionFailed(f"the engine failed{told}", reason="ENGINE_FAILED", status=status)


def _told(words: str) -> str:
    return f": {words}" if words else ""


def _words_of(body: bytes) -> str:
    told = decoded(msgspec.json.decode, body)
    return _words(told.get("error", told)) if isinstance(told, dict) else ""


def _words(error: Any) -> str:
    return str(error.get("message", "") if isinstance(error, dict) else error)[:_MOST_WORDS]
