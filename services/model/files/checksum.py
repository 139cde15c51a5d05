"""Computes the checksum of a model from its file, or from all files in its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from services.model.files.model_files import files_of
from services.model.files.threads import raise_if_cancelled
from services.model.headers.gguf_parts import parts

MAX_DIGESTS = 256  # files whose digests are recorded
_BLOCK = 1 << 20  # bytes that are read at once


@dataclass(frozen=True)
class Measured:
    """The checksum of a model. `digests`: hexadecimal SHA-256 by relative path; empty for a model in one file."""

    checksum: str
    digests: dict[str, str] = field(default_factory=dict)


def covered(path: Path) -> list[Path]:
    """Return the files that the checksum of a model covers. Raises ValidationFailed if a part is missing."""
    return files_of(path) if path.is_dir() else parts(path)


def measured(path: Path) -> Measured:
    """Return the checksum of a file or folder, and the digests of its files. Blocking: reads every byte.

    The digests of very many files are left out, because they are recorded in an event. Raises as `checksum`.
    """
    files = covered(path)
    if path.is_file() and len(files) == 1:
        return Measured(f"sha256:{file_sha256(path)}")
    digests = _digests(path if path.is_dir() else path.parent, files)
    return Measured(_combined(digests), digests if len(digests) <= MAX_DIGESTS else {})


def checksum(path: Path) -> str:
    """Return "sha256:<digest>" for a file or folder.

    The digest of a folder is the SHA-256 of a text. The text has a line "<sha256>  <relative path>" for each file, and
    the lines are sorted by path. Partial downloads (.part) are excluded. For a part of a split model, the digest covers
    all parts.

    Blocking: reads every byte. Raises OSError if a file cannot be read, and the errors of `parts`.
    """
    return measured(path).checksum


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file. Blocking."""
    return file_digest(path).hexdigest()


def file_digest(path: Path) -> hashlib._Hash:
    """Return the SHA-256 object of a file; the caller may add more bytes to it. Blocking. Raises Cancelled."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            raise_if_cancelled()
            digest.update(block)
    return digest


def _digests(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    names = {file.relative_to(folder).as_posix(): file for file in files}
    return {name: file_sha256(names[name]) for name in sorted(names)}


def _combined(digests: dict[str, str]) -> str:
    whole = hashlib.sha256()
    for name, digest in digests.items():
        whole.update(f"{digest}  {name}\n".encode())
    return f"sha256:{whole.hexdigest()}"
