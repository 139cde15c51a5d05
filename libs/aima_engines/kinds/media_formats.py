"""Formats of audio, images and video, recognised by their first bytes; base64 text; the duration of a WAV file. Pure.

Sources: the file signatures of the formats' specifications; RFC 4648 (base64); Microsoft's RIFF WAVE specification.
"""

from __future__ import annotations

import base64
import binascii

from aima_core.errors import ValidationFailed

_SIGNATURES = (  # offset, bytes, name of the format; the name is also the extension of the file sent to an engine
    (8, b"WAVE", "wav"),
    (8, b"WEBP", "webp"),
    (0, b"ID3", "mp3"),
    (0, b"\xff\xfb", "mp3"),
    (0, b"\xff\xf3", "mp3"),
    (0, b"\xff\xf1", "aac"),
    (0, b"fLaC", "flac"),
    (0, b"OggS", "ogg"),
    (4, b"ftypM4A", "m4a"),
    (4, b"ftyp", "mp4"),
    (0, b"\x1a\x45\xdf\xa3", "webm"),
    (0, b"\x89PNG", "png"),
    (0, b"\xff\xd8\xff", "jpeg"),
    (0, b"GIF8", "gif"),
)
_OF_CONTENT_TYPE = {"mpeg": "mp3", "x-wav": "wav", "vnd.wave": "wav", "wave": "wav", "L16": "pcm", "x-flac": "flac"}


def format_of(data: bytes, content_type: str = "") -> str:
    """Return the name of a file's format, such as wav. Returns "" if the format is unknown.

    The first bytes decide. If no signature matches, the content type decides.
    """
    for offset, signature, name in _SIGNATURES:
        if data.startswith(signature, offset):
            return name
    kind, _, subtype = content_type.partition(";")[0].strip().partition("/")
    return _OF_CONTENT_TYPE.get(subtype, subtype) if kind in ("audio", "image", "video") else ""


def decoded_base64(text: str, field: str) -> bytes:
    """Return the bytes of base64 text, which may contain line breaks. Raises ValidationFailed with the field's name."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValidationFailed(
            f"{field}: the text is not valid base64", fields=[{"field": field, "expected": "base64 text (RFC 4648)"}]
        ) from None


def base64_of(data: bytes) -> str:
    """Return the bytes as base64 text."""
    return base64.b64encode(data).decode("ascii")


def wav_seconds(data: bytes) -> float | None:
    """Return the duration of a WAV file in seconds; None if the data is not a WAV file.

    If the header declares more data than the file has, the actual length counts. An engine that streams writes the
    header before it knows the length.
    """
    if format_of(data) != "wav":
        return None
    at, rate = 12, 0
    while at + 8 <= len(data):
        chunk, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if chunk == b"fmt ":
            rate = int.from_bytes(data[at + 16 : at + 20], "little")  # bytes per second
        if chunk == b"data":
            return round(min(size, len(data) - at - 8) / rate, 3) if rate else None
        at += 8 + size + size % 2
    return None
