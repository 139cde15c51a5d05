"""Reads a header in pieces and checks every length against the size of the file.

The reader does not map the file into memory: if another program truncates a mapped file, the reader dies (SIGBUS).
"""

from __future__ import annotations

import struct
from typing import BinaryIO

CHUNK = 1 << 20  # bytes read at a time: a header of 10 MB takes ten reads

U16 = struct.Struct("<H")
U32 = struct.Struct("<I")
U64 = struct.Struct("<Q")


class PastTheEnd(Exception):
    """The header needs more bytes than the file has."""


class Cursor:
    """A position in a file of `size` bytes."""

    def __init__(self, file: BinaryIO, size: int, offset: int = 0) -> None:
        self._file = file
        self.size = size
        self._buffer = b""
        self._base = offset
        self._at = 0

    @property
    def offset(self) -> int:
        """The position from the start of the file, in bytes."""
        return self._base + self._at

    def _fill(self, count: int) -> None:
        """Read at least `count` bytes from the position into the buffer. Raises PastTheEnd."""
        if self.offset + count > self.size:
            raise PastTheEnd
        self._base, self._at = self.offset, 0
        self._file.seek(self._base)
        self._buffer = self._file.read(max(count, min(CHUNK, self.size - self._base)))
        if len(self._buffer) < count:
            raise PastTheEnd

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes. The caller limits `count`. Raises PastTheEnd."""
        if self._at + count > len(self._buffer):
            self._fill(count)
        self._at += count
        return self._buffer[self._at - count : self._at]

    def skip(self, count: int) -> None:
        """Advance by `count` bytes without reading them. Raises PastTheEnd."""
        if self.offset + count > self.size:
            raise PastTheEnd
        self._at += count

    def unpack(self, layout: struct.Struct) -> int:
        """Return the next number. Raises PastTheEnd."""
        number: int = layout.unpack(self.take(layout.size))[0]
        return number

    def skip_strings(self, count: int) -> None:
        """Skip `count` strings, each after an 8-byte length. Must be fast: `count` may be hundreds of thousands."""
        read = U64.unpack_from
        for _ in range(count):
            if self._at + 8 > len(self._buffer):
                self._fill(8)
            self._at += 8 + read(self._buffer, self._at)[0]
        if self.offset > self.size:
            raise PastTheEnd
