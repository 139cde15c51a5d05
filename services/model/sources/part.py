"""The downloaded part of a file, in `<name>.part`. `<name>.part.tag` has the ETag and the size of the file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aima_core.errors import ExecutionFailed
from services.model.files.checksum import file_digest
from services.model.files.disk import writing


@dataclass(frozen=True)
class RemoteFile:
    """One file of a hub; `sha256` (hexadecimal) and `size` (bytes) are None if the hub does not state them."""

    url: str
    path: Path
    sha256: str | None = None
    size: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """The downloaded part of a file."""

    target: RemoteFile

    @property
    def path(self) -> Path:
        return self.target.path.with_name(self.target.path.name + ".part")

    @property
    def tag_path(self) -> Path:
        return self.target.path.with_name(self.target.path.name + ".part.tag")

    def length(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def hashed(self) -> hashlib._Hash:
        return file_digest(self.path)

    def resume_headers(self) -> dict[str, str]:
        """Return the headers that request the rest of the file.

        Without an ETag or a known digest, return no headers: the rest could come from another version of the file.
        """
        tag, _ = self.version()
        if self.length() == 0 or (tag is None and self.target.sha256 is None):
            return {}
        return {"Range": f"bytes={self.length()}-"} | ({"If-Range": tag} if tag else {})

    def version(self) -> tuple[str | None, int | None]:
        """Return the ETag and the size of the file that the part comes from; each None if unknown."""
        if not self.tag_path.is_file():
            return None, None
        tag, _, size = self.tag_path.read_text().partition("\n")
        return tag or None, int(size) if size.isdecimal() else None

    def note_version(self, tag: str | None, size: int | None) -> None:
        """Store the ETag and the size. A weak ETag ("W/<text>") is not stored: it does not guarantee the same bytes.

        Neither is an ETag that cannot be sent back in a header.
        """
        strong = tag if tag and not tag.startswith("W/") and tag.isascii() and tag.isprintable() else ""
        with writing(self.path.parent):
            self.tag_path.write_text(f"{strong}\n{'' if size is None else size}")

    def continues(self, tag: str | None, size: int | None) -> bool:
        """Return whether a response with this ETag and size of the file continues the part.

        Some servers ignore If-Range. Without a known digest, the ETag must prove that the file is still the same.
        """
        own_tag, own_size = self.version()
        same_size = None in (own_size, size) or own_size == size
        same_tag = own_tag == tag if tag is not None and own_tag is not None else self.target.sha256 is not None
        return same_size and same_tag

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.tag_path.unlink(missing_ok=True)

    def check(self, digest: str, size: int) -> str:
        """Return the digest if digest and size are correct; else remove the part and raise ExecutionFailed."""
        expected, name = self.target, self.target.path.name
        if (expected.size in (None, size)) and (expected.sha256 in (None, digest)):
            return digest
        self.remove()
        raise ExecutionFailed(
            f"{name} is damaged: its size or checksum is not what the hub announced; it was removed, pull it again",
            reason="CHECKSUM_MISMATCH",
            file=name,
            expected=f"sha256:{expected.sha256}" if expected.sha256 else None,
            found=f"sha256:{digest}" if digest else None,
        )
