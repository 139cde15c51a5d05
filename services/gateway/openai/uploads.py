"""A form with a file in it (multipart/form-data, RFC 7578): read as it comes, and written again for an engine.

A file stays in the blocks in which it came, which are in memory once; only small fields are looked at.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from aima_core.call import token
from aima_core.errors import InvalidRequest, ValidationFailed
from services.gateway.engines.engine_http import Buffer
from services.gateway.entrance.error_bodies import HttpRefusal

_MOST_PARTS = 100  # an API has a dozen fields
_MOST_TEXT = 64 * 1024  # bytes of a field that is no file, such as a prompt
_SMALL = 4096  # bytes up to which a piece is copied to the one before: each by itself costs more than it holds


@dataclass
class Part:
    """A field of the form. `file`: whether it is one, rather than text."""

    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    pieces: list[Buffer] = field(default_factory=list)
    name: str = ""
    file: bool = False
    size: int = 0

    @property
    def text(self) -> str:
        """What it holds as text."""
        return b"".join(self.pieces).decode("utf-8", "replace")

    def add(self, data: bytes, start: int, end: int) -> None:
        """Take what has come of it. Raises ValidationFailed for more text than a field has."""
        self.size += end - start
        if not self.file and self.size > _MOST_TEXT:
            raise _refused(self.name or "(body)", f"at most {_MOST_TEXT} bytes of text", "the field is too long")
        last = self.pieces[-1] if self.pieces else None
        if end - start > _SMALL:
            self.pieces.append(memoryview(data)[start:end])
        elif isinstance(last, bytearray) and len(last) < _SMALL:
            last += data[start:end]
        else:
            self.pieces.append(bytearray(data[start:end]))


class Form:
    """A form as it is read."""

    def __init__(self, content_type: str) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            told = kind.decode("latin-1") or "nothing"
            raise HttpRefusal(
                415, f"the body has to be multipart/form-data with a boundary, not {told}", "UNSUPPORTED_MEDIA_TYPE"
            )
        self.parts: list[Part] = []
        self._header = (bytearray(), bytearray())
        self._ended = False
        self._parser = MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._describe,
                "on_part_data": self._data,
                "on_end": self._end,
            },
        )

    async def read(self, blocks: AsyncIterator[bytes]) -> Form:
        """Read all of it. Raises InvalidRequest for what is no form, ValidationFailed for one that is too large."""
        try:
            async for block in blocks:
                self._parser.write(block)
        except FormParserError as error:
            raise InvalidRequest(f"the form cannot be read: {error}", reason="NOT_DECODABLE") from None
        if not self._ended:
            raise InvalidRequest("the form has no end", reason="NOT_DECODABLE")
        return self

    def text(self, name: str, default: str = "") -> str:
        """Return what a field says."""
        return next((part.text for part in self.parts if part.name == name and not part.file), default)

    def has_file(self, name: str) -> bool:
        """Whether a file is there."""
        return any(part.name == name and part.file and part.size for part in self.parts)

    def written(self, boundary: str, others: Mapping[str, str]) -> list[Buffer]:
        """Return the form again, some of its fields with other values."""
        return list(self._written(boundary.encode(), others))

    def _written(self, boundary: bytes, others: Mapping[str, str]) -> Iterator[Buffer]:
        for part in self.parts:
            lines = b"".join(b"%b: %b\r\n" % header for header in part.headers)
            yield b"--%b\r\n%b\r\n" % (boundary, lines)
            if part.name in others and not part.file:
                yield others[part.name].encode()
            else:
                yield from part.pieces
            yield b"\r\n"
        yield b"--%b--\r\n" % boundary

    def _begin(self) -> None:
        if len(self.parts) == _MOST_PARTS:
            raise _refused("(body)", f"at most {_MOST_PARTS} fields", "the form has too many fields")
        self.parts.append(Part())

    def _end_header(self) -> None:
        name, value = self._header
        self.parts[-1].headers.append((bytes(name), bytes(value)))
        self._header = (bytearray(), bytearray())

    def _describe(self) -> None:
        part = self.parts[-1]
        for name, value in part.headers:
            if name.lower() == b"content-disposition":
                _, options = parse_options_header(value)
                part.name = options.get(b"name", b"").decode("utf-8", "replace")
                part.file = b"filename" in options

    def _data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].add(data, start, end)

    def _end(self) -> None:
        self._ended = True


def boundary() -> str:
    """Return a line that no file holds by chance."""
    return f"aima-{token(16)}"


def _refused(name: str, expected: str, why: str) -> ValidationFailed:
    return ValidationFailed(f"{name}: {why}", fields=[{"field": name, "expected": expected}])
