"""Reads query strings, paths and bodies of requests. Refuses bodies that are too large, invalid, or of a wrong type."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote

import msgspec
from starlette.requests import Request

from aima_core.errors import InvalidRequest, PayloadTooLarge, ValidationFailed
from services.gateway.entrance.error_bodies import HttpRefusal

T = TypeVar("T")
_JSON = ("application/json", "text/json")
_BOM = b"\xef\xbb\xbf"
_HALF = b"\\ud"  # every surrogate begins so, in lower case
# an escaped backslash, a pair of surrogates, or a lone surrogate
_SURROGATES = re.compile(
    rb"(\\\\)|(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)
_WRITTEN_AS_FLOAT = re.compile("Expected `int[^`]*`, got `float`")
_EXACT = 2**53  # a float below has every integer exactly
_MAX_PAIRS = 1000  # pairs in a query string; no unit has that many fields


def query_of(request: Request) -> list[tuple[str, str]]:
    """Return the pairs of the query string. Raises InvalidRequest if it has more than 1000 pairs or is not UTF-8."""
    text = request.scope["query_string"].decode("latin-1")
    try:
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MAX_PAIRS)
    except ValueError as error:
        raise InvalidRequest(f"the query string is invalid: {error}", reason="NOT_DECODABLE") from None


def segments_of(request: Request, prefix: str) -> list[str]:
    """Return the decoded segments of the path after a prefix. An encoded slash (%2F) does not separate segments.

    Raises InvalidRequest if the path is not UTF-8.
    """
    raw: str = request.scope["raw_path"].decode("latin-1")
    try:
        return [unquote(part, errors="strict") for part in raw.removeprefix(f"{prefix}/").split("/")]
    except ValueError:
        raise InvalidRequest("the path is not UTF-8", reason="NOT_DECODABLE") from None


async def read(request: Request, limit: int) -> bytes:
    """Return the body. Raises PayloadTooLarge if the body has more than `limit` bytes."""
    return b"".join([block async for block in blocks(request, limit)])


async def blocks(request: Request, limit: int) -> AsyncIterator[bytes]:
    """Yield the blocks of the body as they arrive.

    Raises PayloadTooLarge if the declared or actual length exceeds `limit` bytes, and HttpRefusal (415) for a
    compressed body.
    """
    if request.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
        raise HttpRefusal(
            415, "compressed bodies are not supported; send the body without Content-Encoding", "UNSUPPORTED_ENCODING"
        )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise _too_large(limit)
    size = 0
    async for block in request.stream():
        size += len(block)
        if size > limit:
            raise _too_large(limit)
        yield block


async def read_json(request: Request, limit: int) -> bytes:
    """Return the body. Raises HttpRefusal (415) if the Content-Type is not JSON. A missing Content-Type is accepted."""
    data = await read(request, limit)
    media = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if data and media not in _JSON and not media.endswith("+json"):
        raise HttpRefusal(
            415, f"the body must be JSON (Content-Type: application/json), not {media}", "UNSUPPORTED_MEDIA_TYPE"
        )
    return repaired(data)


async def read_object(request: Request, limit: int) -> dict[str, Any]:
    """Return the body as a JSON object. An empty body counts as an empty object."""
    data = await read_json(request, limit)
    return decode_object(data) if data else {}


def repaired(data: bytes) -> bytes:
    """Return JSON without a byte order mark, and with U+FFFD in place of a lone surrogate.

    Programs on Windows write a byte order mark. A client that cuts a text in the middle of a character sends a lone
    surrogate; the servers of the API accept it.
    """
    data = data.removeprefix(_BOM)
    return (
        _SURROGATES.sub(lambda match: match[0] if match[1] or match[2] else b"\\ufffd", data)
        if _HALF in data.lower()
        else data
    )


def decode_object(data: bytes) -> dict[str, Any]:
    """Decode a JSON object. Raises InvalidRequest if the data is not a JSON object."""
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not a JSON object: {error}", reason="NOT_DECODABLE") from None


def decode(data: bytes, kind: type[T]) -> T:
    """Decode JSON to a struct. A whole number may be written as a float, such as 6.0.

    Raises ValidationFailed for an invalid field, and InvalidRequest for invalid JSON.
    """
    try:
        return msgspec.json.decode(data.decode(), type=kind)  # decode() rejects invalid UTF-8 even in skipped fields
    except msgspec.ValidationError as error:
        if not _WRITTEN_AS_FLOAT.search(str(error)):
            raise refusal(error) from None
        return convert(msgspec.json.decode(whole_numbers(data)), kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}", reason="NOT_DECODABLE") from None


def whole_numbers(data: bytes) -> bytes:
    """Return JSON in which every whole number is written without a fraction: 6 in place of 6.0."""
    return msgspec.json.encode(_as_integers(msgspec.json.decode(data)))


def _as_integers(value: Any) -> Any:
    match value:
        case float() if value.is_integer() and abs(value) < _EXACT:
            return int(value)
        case dict():
            return {name: _as_integers(item) for name, item in value.items()}
        case list():
            return [_as_integers(item) for item in value]
    return value


def convert(data: Any, kind: type[T], inside: str = "") -> T:
    """Convert decoded JSON to a struct. Raises ValidationFailed; the error names the invalid field, after `inside`."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise refusal(error, inside) from None


def refusal(error: msgspec.ValidationError, inside: str = "") -> ValidationFailed:
    """Convert an error of msgspec, such as "Expected `int`, got `str` - at `$.max_tokens`", to ValidationFailed."""
    expected, _, path = str(error).partition(" - at `$")
    quoted = expected.split("`")
    field = path.strip("`.") or (quoted[1] if len(quoted) > 1 and "field" in expected else "")
    field = ".".join(filter(None, (inside, field))) or "(body)"
    return ValidationFailed(f"{field}: {expected}", fields=[{"field": field, "expected": expected}])


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is larger than the limit of {limit} bytes", limit=limit)
