"""Reading what a client sends: bounded, of the right media type, and told what is wrong with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote

import msgspec
from starlette.requests import Request

from aima_core.errors import InvalidRequest, PayloadTooLarge, ValidationFailed
from services.gateway.entrance.error_bodies import HttpRefusal

T = TypeVar("T")
_JSON = ("application/json", "text/json")
_MOST_PAIRS = 1000  # of a query string; no unit has that many fields


def query_of(request: Request) -> list[tuple[str, str]]:
    """Return the pairs of the query string; raise InvalidRequest for what is not UTF-8, or far too much."""
    text = request.scope["query_string"].decode("latin-1")
    try:
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MOST_PAIRS)
    except ValueError as error:
        raise InvalidRequest(f"the query string cannot be read: {error}", reason="NOT_DECODABLE") from None


def segments_of(request: Request, prefix: str) -> list[str]:
    """Return the parts of the path behind a prefix; a slash that is encoded is part of one. Raises InvalidRequest."""
    raw: str = request.scope["raw_path"].decode("latin-1")
    try:
        return [unquote(part, errors="strict") for part in raw.removeprefix(f"{prefix}/").split("/")]
    except ValueError:
        raise InvalidRequest("the path is not UTF-8", reason="NOT_DECODABLE") from None


async def read(request: Request, limit: int) -> bytes:
    """Return the body. Raises PayloadTooLarge."""
    return b"".join([block async for block in blocks(request, limit)])


async def blocks(request: Request, limit: int) -> AsyncIterator[bytes]:
    """Yield the body as it comes; raise PayloadTooLarge at once when it says how long it is, or as soon as it shows."""
    if request.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
        raise HttpRefusal(415, "bodies are taken as they are, without a Content-Encoding", "UNSUPPORTED_ENCODING")
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told) > limit:
        raise _too_large(limit)
    size = 0
    async for block in request.stream():
        size += len(block)
        if size > limit:
            raise _too_large(limit)
        yield block


async def read_json(request: Request, limit: int) -> bytes:
    """Return the body, of which the client says that it is JSON, or says nothing."""
    data = await read(request, limit)
    media = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if data and media not in _JSON and not media.endswith("+json"):
        raise HttpRefusal(
            415, f"the body has to be JSON (Content-Type: application/json), not {media}", "UNSUPPORTED_MEDIA_TYPE"
        )
    return data


async def read_object(request: Request, limit: int) -> dict[str, Any]:
    """Return the body as a JSON object; an empty body is an empty one."""
    data = await read_json(request, limit)
    return decode_object(data) if data else {}


def decode_object(data: bytes) -> dict[str, Any]:
    """Return JSON text as an object; raise InvalidRequest for anything else."""
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not a JSON object: {error}", reason="NOT_DECODABLE") from None


def decode(data: bytes, kind: type[T]) -> T:
    """Return JSON text as a struct; raise ValidationFailed with the field that is wrong, or InvalidRequest."""
    try:
        return msgspec.json.decode(data.decode(), type=kind)  # of what it skips it would not see that it is UTF-8
    except msgspec.ValidationError as error:
        raise refusal(error) from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}", reason="NOT_DECODABLE") from None


def convert(data: Any, kind: type[T], inside: str = "") -> T:
    """Return decoded JSON as a struct; raise ValidationFailed with the field that is wrong, and what it is `inside`."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise refusal(error, inside) from None


def refusal(error: msgspec.ValidationError, inside: str = "") -> ValidationFailed:
    """Return what msgspec found as an error of ours: "Expected `int`, got `str` - at `$.max_tokens`"."""
    expected, _, where = str(error).partition(" - at `$")
    named = expected.split("`")
    field = where.strip("`.") or (named[1] if len(named) > 1 and "field" in expected else "")
    field = ".".join(filter(None, (inside, field))) or "(body)"
    return ValidationFailed(f"{field}: {expected}", fields=[{"field": field, "expected": expected}])


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is larger than the {limit} bytes that are taken", limit=limit)
