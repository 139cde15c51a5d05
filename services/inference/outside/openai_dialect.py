"""The OpenAI dialect: requests to engines that speak it, and the parsing of their answers.

Source: the OpenAI API reference (chat completions, completions, embeddings), as llama.cpp, vLLM and SGLang serve it.
Bodies hold content: this module must not log or keep one.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import httpx2
import msgspec

from aima_core.bus.client import UNREADABLE
from aima_core.errors import AimaError, ExecutionFailed, RateLimited, Unavailable, ValidationFailed

_DONE = b"[DONE]"
# One connection per request: llama.cpp may close an idle connection at the moment of its reuse, and opening one on
# the same machine takes a fraction of a millisecond.
_HEADERS = {"Connection": "close", "Content-Type": "application/json"}
_CONNECT = 5.0  # seconds
# Engines speak plain HTTP. Without this the client loads the machine's certificates: 38 ms and 3 MiB of no use.
_PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class BrokenAnswer(Exception):
    """The engine closed the connection in the middle of a request; `begun`: it had sent a part of its answer."""

    def __init__(self, begun: bool) -> None:
        super().__init__("the engine closed the connection")
        self.begun = begun


class TokenCounts(msgspec.Struct):
    """`usage` of an answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class Delta(msgspec.Struct):
    """The new part of a message."""

    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class Choice(msgspec.Struct):
    """The new part of an answer: the `delta` of a chat or its whole `message`; the `text` of a completion."""

    delta: Delta | None = None
    message: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class Vector(msgspec.Struct):
    """One embedding."""

    embedding: list[float]
    index: int = 0


class EngineAnswer(msgspec.Struct):
    """An answer, or a chunk of a streamed one."""

    choices: list[Choice] = []
    data: list[Vector] = []
    usage: TokenCounts | None = None
    error: Any = None


_decode = msgspec.json.Decoder(EngineAnswer).decode


def client() -> httpx2.AsyncClient:
    """Return a new HTTP client. It uses no proxy: engines run on this machine or in its network."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx2.AsyncClient(
        verify=_PLAIN, trust_env=False, limits=limits, timeout=httpx2.Timeout(None, connect=_CONNECT)
    )


async def ask(http: httpx2.AsyncClient, url: str, body: Mapping[str, Any]) -> EngineAnswer:
    """Return the whole answer. Raises BrokenAnswer, or the error for the engine's status (see `refusal`)."""
    try:
        response = await http.post(url, content=msgspec.json.encode(body), headers=_HEADERS)
    except httpx2.HTTPError:
        raise BrokenAnswer(begun=False) from None
    if not response.is_success:
        raise refusal(response.status_code, response.content)
    return _read(response.content)


async def stream(http: httpx2.AsyncClient, url: str, body: Mapping[str, Any]) -> AsyncGenerator[EngineAnswer, None]:
    """Yield the chunks of a streamed answer. Closing the generator early closes the connection and stops the engine.

    If the engine does not stream, its whole answer is the only chunk.
    """
    begun = False
    try:
        async with http.stream("POST", url, content=msgspec.json.encode(body), headers=_HEADERS) as response:
            if not response.is_success:
                raise refusal(response.status_code, await response.aread())
            if response.headers.get("content-type", "").startswith("application/json"):
                yield _as_chunk(_read(await response.aread()))
                return
            rest = b""
            async for block in response.aiter_raw():
                *lines, rest = (rest + block).split(b"\n")
                for line in lines:
                    if not line.startswith(b"data:"):
                        continue
                    data = line[5:].strip()
                    if data == _DONE:
                        return
                    begun = True
                    yield _read(data)
    except httpx2.HTTPError:
        raise BrokenAnswer(begun) from None
    raise BrokenAnswer(begun)  # the stream ended without [DONE]


def _read(data: bytes) -> EngineAnswer:
    try:
        answer = _decode(data)
    except UNREADABLE:
        raise ExecutionFailed("the engine's answer does not follow the OpenAI dialect", reason="BAD_ANSWER") from None
    if answer.error:
        raise refusal(500, data)
    return answer


def _as_chunk(whole: EngineAnswer) -> EngineAnswer:
    """Return a whole answer with numbered tool calls, as chunks have them."""
    for choice in whole.choices:
        for number, call in enumerate((choice.message and choice.message.tool_calls) or ()):
            call["index"] = number
    return whole


def refusal(status: int, body: bytes) -> AimaError:
    """Return an engine's error as an AimaError.

    The engine's own words may quote the request: only the caller may get them, no log and no event.
    """
    try:
        answer = msgspec.json.decode(body)
        error = answer.get("error", answer)
        text = str(error.get("message", "") if isinstance(error, dict) else error)[:500]
    except (*UNREADABLE, AttributeError):
        text = ""
    why = f": {text}" if text else ""
    match status:
        case 400 | 404 | 405 | 413 | 415 | 422 | 501:
            return ValidationFailed(f"the engine refused the request{why}", reason="ENGINE_REFUSED", status=status)
        case 429:
            return RateLimited(f"the engine is busy{why}", reason="ENGINE_BUSY", retry_after=1)
        case 503:
            return Unavailable(f"the engine is not ready{why}", reason="ENGINE_LOADING", retry_after=1)
        case _:
            return ExecutionFailed(f"the engine failed{why}", reason="ENGINE_FAILED", status=status)


async def voices(http: httpx2.AsyncClient, endpoint: str) -> list[tuple[str, str, str]]:
    """Return id, name and language of each voice that a text-to-speech engine lists; empty if it has no such list."""
    try:
        response = await http.get(f"{endpoint}/v1/audio/voices", headers=_HEADERS, timeout=_CONNECT)
        entries = msgspec.json.decode(response.content)["voices"] if response.is_success else []
    except (httpx2.HTTPError, *UNREADABLE, LookupError, TypeError):
        return []
    voices = [{"id": entry} if isinstance(entry, str) else entry for entry in entries]
    return [(str(v["id"]), str(v.get("name", v["id"])), str(v.get("language", ""))) for v in voices if "id" in v]


def merge_tool_calls(calls: list[dict[str, Any]], deltas: list[dict[str, Any]]) -> None:
    """Add a chunk's tool-call deltas to `calls`, by index: a call's name comes once, its arguments in parts."""
    for delta in deltas:
        index = delta.get("index", 0)
        while len(calls) <= index:
            calls.append({"type": "function", "function": {"name": "", "arguments": ""}})
        call, function = calls[index], delta.get("function") or {}
        if delta.get("id"):
            call["id"] = delta["id"]
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""
