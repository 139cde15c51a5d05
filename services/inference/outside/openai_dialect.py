"""The OpenAI dialect: what is asked of an engine that speaks it, and what its answers say.

Source: the OpenAI API reference (chat completions, completions, embeddings), as llama.cpp, vLLM and SGLang serve it.
Bodies hold content: nothing here logs or keeps one.
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
# A connection for each request: llama.cpp closes idle ones just as they are used again, and opening one on the same
# machine takes a fraction of a millisecond.
_HEADERS = {"Connection": "close", "Content-Type": "application/json"}
_CONNECT = 5.0  # seconds
# Engines speak plain HTTP. Without this the client reads the machine's certificates: 38 ms and 3 MiB for nothing.
_PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class BrokenAnswer(Exception):
    """The engine went away in the middle of a request; `begun` tells whether it had answered anything."""

    def __init__(self, begun: bool) -> None:
        super().__init__("the engine went away")
        self.begun = begun


class TokenCounts(msgspec.Struct):
    """`usage` of an answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class Delta(msgspec.Struct):
    """What is new of a message."""

    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class Choice(msgspec.Struct):
    """What is new of an answer: `delta` of a chat, or its whole `message`; `text` of a completion."""

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
    """Return the HTTP client of the process. No proxy: engines are on this machine or beside it."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx2.AsyncClient(
        verify=_PLAIN, trust_env=False, limits=limits, timeout=httpx2.Timeout(None, connect=_CONNECT)
    )


async def ask(http: httpx2.AsyncClient, url: str, body: Mapping[str, Any]) -> EngineAnswer:
    """Return the whole answer. Raises Broken, or the error that the engine's status stands for."""
    try:
        reply = await http.post(url, content=msgspec.json.encode(body), headers=_HEADERS)
    except httpx2.HTTPError:
        raise BrokenAnswer(begun=False) from None
    if not reply.is_success:
        raise refusal(reply.status_code, reply.content)
    return _read(reply.content)


async def stream(http: httpx2.AsyncClient, url: str, body: Mapping[str, Any]) -> AsyncGenerator[EngineAnswer, None]:
    """Yield the chunks of a streamed answer. Leaving early closes the connection, and the engine stops.

    An engine that knows no streams answers in one piece, which is the only chunk then.
    """
    begun = False
    try:
        async with http.stream("POST", url, content=msgspec.json.encode(body), headers=_HEADERS) as reply:
            if not reply.is_success:
                raise refusal(reply.status_code, await reply.aread())
            if reply.headers.get("content-type", "").startswith("application/json"):
                yield _as_chunk(_read(await reply.aread()))
                return
            rest = b""
            async for block in reply.aiter_raw():
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
    raise BrokenAnswer(begun)  # the stream ended without saying so


def _read(data: bytes) -> EngineAnswer:
    try:
        answer = _decode(data)
    except UNREADABLE:
        raise ExecutionFailed("the engine's answer is not what its dialect says", reason="BAD_ANSWER") from None
    if answer.error:
        raise refusal(500, data)
    return answer


def _as_chunk(whole: EngineAnswer) -> EngineAnswer:
    """Return a whole answer with its tool calls numbered, as pieces of them are."""
    for choice in whole.choices:
        for number, call in enumerate((choice.message and choice.message.tool_calls) or ()):
            call["index"] = number
    return whole


def refusal(status: int, body: bytes) -> AimaError:
    """Return an engine's error as ours. Its own words go to the caller alone: they may quote what was asked."""
    try:
        told = msgspec.json.decode(body)
        error = told.get("error", told)
        text = str(error.get("message", "") if isinstance(error, dict) else error)[:500]
    except (*UNREADABLE, AttributeError):
        text = ""
    said = f": {text}" if text else ""
    match status:
        case 400 | 404 | 405 | 413 | 415 | 422 | 501:
            return ValidationFailed(f"the engine refused the request{said}", reason="ENGINE_REFUSED", status=status)
        case 429:
            return RateLimited(f"the engine is busy{said}", reason="ENGINE_BUSY", retry_after=1)
        case 503:
            return Unavailable(f"the engine is not ready{said}", reason="ENGINE_LOADING", retry_after=1)
        case _:
            return ExecutionFailed(f"the engine failed{said}", reason="ENGINE_FAILED", status=status)


async def voices(http: httpx2.AsyncClient, endpoint: str) -> list[tuple[str, str, str]]:
    """Return id, name and language of each voice that a text-to-speech engine lists; none if it has no such list."""
    try:
        reply = await http.get(f"{endpoint}/v1/audio/voices", headers=_HEADERS, timeout=_CONNECT)
        listed = msgspec.json.decode(reply.content)["voices"] if reply.is_success else []
    except (httpx2.HTTPError, *UNREADABLE, LookupError, TypeError):
        return []
    found = [{"id": voice} if isinstance(voice, str) else voice for voice in listed]
    return [(str(v["id"]), str(v.get("name", v["id"])), str(v.get("language", ""))) for v in found if "id" in v]


def merge_tool_calls(calls: list[dict[str, Any]], news: list[dict[str, Any]]) -> None:
    """Add what a chunk says of tool calls: names come once, arguments in pieces, told apart by index."""
    for piece in news:
        index = piece.get("index", 0)
        while len(calls) <= index:
            calls.append({"type": "function", "function": {"name": "", "arguments": ""}})
        call, function = calls[index], piece.get("function") or {}
        if piece.get("id"):
            call["id"] = piece["id"]
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""
