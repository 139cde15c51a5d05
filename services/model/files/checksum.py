"""Computes the checksum of a model from its file, or from all files in its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from services.model.files.model_files import files_of
from services.model.files.threads import raise_if_cancelled
from services.model.headers.gguf_parts import parts

_BLOCK = 1 << 20  # bytes that are read at once


def checksum(path: Path) -> str:
    """Return "sha256:<digest>" for a file or folder.

    The digest of a folder is the SHA-256 of a text. The text has a line "<sha256>  <relative path>" for each file, and
    the lines are sorted by path. Partial downloads (.part) are excluded. For a part of a split model, the digest covers
    all parts.

    Blocking: reads every byte. Raises OSError if a file cannot be read, and the errors of `parts`.
    """
    if path.is_dir():
        return _combined(path, files_of(path))
    files = parts(path)
    return _combined(path.parent, files) if len(files) > 1 else f"sha256:{file_sha256(path)}"


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


def _combined(folder: Path, files: Iterable[Path]) -> str:
    whole = hashlib.sha256()
    for file in sorted(files, key=lambda child: child.relative_to(folder).as_posix()):
        whole.update(f"{file_sha256(file)}  {file.relative_to(folder).as_posix()}\n".encode())
    return f"sha256:{whole.hexdigest()}"
