"""Reads a header in pieces and checks every length against the size of the file.

The reader does not map the file into memory: if another program truncates a mapped file, the reader dies (SIGBUS).
"""

from __future__ import annotations

import struct
from typing import IO

CHUNK = 1 << 20  # bytes read at a time: a header of 10 MB takes ten reads

U16 = struct.Struct("<H")
U32 = struct.Struct("<I")
U64 = struct.Struct("<Q")


class PastTheEnd(Exception):
    """The header needs more bytes than the file has."""


class TooLong(Exception):
    """The header needs more bytes than the reader allows."""


class Cursor:
    """A position in a file of `size` bytes. The header must end within the first `limit` bytes."""

    def __init__(self, file: IO[bytes], size: int, offset: int = 0, limit: int | None = None) -> None:
        self._file = file
        self.size = size
        self._limit = size if limit is None else limit
        self._buffer = b""
        self._base = offset
        self._at = 0

    @property
    def offset(self) -> int:
        """The position from the start of the file, in bytes."""
        return self._base + self._at

    def _check(self, count: int) -> None:
        """Check that `count` bytes follow the position. Raises PastTheEnd and TooLong."""
        if self.offset + count > self.size:
            raise PastTheEnd
        if self.offset + count > self._limit:
            raise TooLong

    def _fill(self, count: int) -> None:
        """Read at least `count` bytes from the position into the buffer. Raises PastTheEnd and TooLong."""
        self._check(count)
        self._base, self._at = self.offset, 0
        self._file.seek(self._base)
        self._buffer = self._file.read(max(count, min(CHUNK, self.size - self._base)))
        if len(self._buffer) < count:
            raise PastTheEnd

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes. The caller limits `count`. Raises PastTheEnd and TooLong."""
        if self._at + count > len(self._buffer):
            self._fill(count)
        self._at += count
        return self._buffer[self._at - count : self._at]

    def skip(self, count: int) -> None:
        """Advance by `count` bytes without reading them. Raises PastTheEnd and TooLong."""
        self._check(count)
        self._at += count

    def unpack(self, layout: struct.Struct) -> int:
        """Return the next number. Raises PastTheEnd and TooLong."""
        number: int = layout.unpack(self.take(layout.size))[0]
        return number

    def skip_strings(self, count: int) -> None:
        """Skip `count` strings, each after an 8-byte length. Must be fast: `count` may be hundreds of thousands."""
        read = U64.unpack_from
        for _ in range(count):
            if self._at + 8 > len(self._buffer):
                self._fill(8)
            self._at += 8 + read(self._buffer, self._at)[0]
        self._check(0)
