"""Reading what a client sends: bounded, of the right media type, and told what is wrong with it."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request

from aima_core.errors import InvalidRequest, PayloadTooLarge
from services.gateway.answers import HttpRefusal

_JSON = ("application/json", "text/json")


async def read(request: Request, limit: int) -> bytes:
    """Return the body; raise PayloadTooLarge before reading one that says how long it is, or as soon as it shows."""
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told) > limit:
        raise _too_large(limit)
    blocks, size = [], 0
    async for block in request.stream():
        size += len(block)
        if size > limit:
            raise _too_large(limit)
        blocks.append(block)
    return b"".join(blocks)


async def read_object(request: Request, limit: int) -> dict[str, Any]:
    """Return the body as a JSON object; an empty body is an empty one."""
    data = await read(request, limit)
    if not data:
        return {}
    media = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media not in _JSON and not media.endswith("+json"):
        raise HttpRefusal(
            415, f"the body has to be JSON (Content-Type: application/json), not {media}", "UNSUPPORTED_MEDIA_TYPE"
        )
    return decode_object(data)


def decode_object(data: bytes) -> dict[str, Any]:
    """Return JSON text as an object; raise InvalidRequest for anything else."""
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not a JSON object: {error}", reason="NOT_DECODABLE") from None


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is larger than the {limit} bytes that are taken", limit=limit)
