"""Checks the limits of a request's payload, and decodes the payload."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from aima_core.call import CONTENT_TYPE
from aima_core.errors import InvalidRequest, PayloadTooLarge

LARGEST_PAYLOAD = 8 * 1024 * 1024  # bytes of an input; the server allows twice as many, so AIMA itself can refuse
_MOST_FIELDS = 1000  # fields of an input; limited, because pydantic creates an error for each unknown field


def check_size(payload: bytes) -> None:
    """Raise PayloadTooLarge for an input above the limit of 8 MiB."""
    if len(payload) > LARGEST_PAYLOAD:
        raise PayloadTooLarge(
            f"the input has {len(payload)} bytes; the limit is {LARGEST_PAYLOAD}",
            size=len(payload),
            limit=LARGEST_PAYLOAD,
        )


def body_of(payload: bytes, headers: Mapping[str, str] | None) -> bytes:
    """Return the input in a payload as JSON. Converts msgpack to JSON if the headers name msgpack.

    Raises PayloadTooLarge for a payload above the limit, and InvalidRequest for a payload that is not an object or has
    too many fields.
    """
    check_size(payload)
    if not payload:
        return b"{}"
    if "msgpack" in (headers or {}).get(CONTENT_TYPE, ""):
        try:
            payload = msgspec.json.encode(msgspec.msgpack.decode(payload))
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
            raise InvalidRequest("the payload is not valid msgpack", reason="NOT_DECODABLE") from error
    try:
        fields = msgspec.json.decode(payload, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the payload is not a JSON object: {error}", reason="NOT_DECODABLE") from None
    if len(fields) > _MOST_FIELDS:
        raise InvalidRequest(
            f"the input has {len(fields)} fields; the limit is {_MOST_FIELDS}", reason="TOO_MANY_FIELDS"
        )
    return payload
