"""Reads a form with a file (multipart/form-data, RFC 7578), and writes the form again for an engine.

A file stays in the blocks in which it arrived, so memory holds the file only once. Only text fields are decoded.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from aima_core.call import token
from aima_core.errors import InvalidRequest, ValidationFailed
from aima_engines.engine_http import Buffer
from services.gateway.entrance.error_bodies import HttpRefusal

_MOST_PARTS = 100  # fields of a form; an API has a dozen fields
_MOST_TEXT = 64 * 1024  # bytes of a text field, such as a prompt
_SMALL = 4096  # bytes of a small piece; small pieces are joined, because tiny objects need more memory than their data


@dataclass
class Part:
    """A field of the form. `file` is True for a file and False for a text. `size` is in bytes."""

    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    pieces: list[Buffer] = field(default_factory=list)
    name: str = ""
    file: bool = False
    size: int = 0

    @property
    def text(self) -> str:
        """The field's value as text. Bytes that are not UTF-8 become replacement characters."""
        return b"".join(self.pieces).decode("utf-8", "replace")

    def add(self, data: bytes, start: int, end: int) -> None:
        """Append `data[start:end]`. Raises ValidationFailed if a text field becomes too long."""
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
    """Reads a form block by block. Raises HttpRefusal (415) if the content type is not multipart with a boundary."""

    def __init__(self, content_type: str) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise HttpRefusal(
                415,
                f"the Content-Type must be multipart/form-data with a boundary, not {content_type[:100] or 'missing'}",
                "UNSUPPORTED_MEDIA_TYPE",
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
        """Read the whole form. Raises InvalidRequest for a malformed form, and ValidationFailed beyond a limit."""
        try:
            async for block in blocks:
                self._parser.write(block)
        except FormParserError as error:
            raise InvalidRequest(f"the form cannot be read: {error}", reason="NOT_DECODABLE") from None
        if not self._ended:
            raise InvalidRequest("the form is cut off: its closing boundary is missing", reason="NOT_DECODABLE")
        return self

    def text(self, name: str, default: str = "") -> str:
        """Return the value of a text field, or the default if the form has no such field."""
        return next((part.text for part in self.parts if part.name == name and not part.file), default)

    def has_file(self, name: str) -> bool:
        """Whether the form has a non-empty file with this name."""
        return any(part.name == name and part.file and part.size for part in self.parts)

    def written(self, boundary: str, changes: Mapping[str, str]) -> list[Buffer]:
        """Return the body of the form. `changes` has new values for text fields."""
        return list(self._written(boundary.encode(), changes))

    def _written(self, boundary: bytes, changes: Mapping[str, str]) -> Iterator[Buffer]:
        for part in self.parts:
            lines = b"".join(b"%b: %b\r\n" % header for header in part.headers)
            yield b"--%b\r\n%b\r\n" % (boundary, lines)
            if part.name in changes and not part.file:
                yield changes[part.name].encode()
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
    """Return a random boundary, so no file contains the boundary by chance."""
    return f"aima-{token(16)}"


def _refused(name: str, expected: str, problem: str) -> ValidationFailed:
    return ValidationFailed(f"{name}: {problem}", fields=[{"field": name, "expected": expected}])
