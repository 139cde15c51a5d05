"""The checksum of a model: of its one file, or of all files of its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from services.model.files.threads import go_on
from services.model.headers.formats import parts

_BLOCK = 1 << 20  # bytes


def checksum(path: Path) -> str:
    """Return "sha256:..." of a file, or of a folder: over "<sha256>  <relative path>" lines sorted by path.

    The first of a model's several parts stands for all of them. Blocking: it reads every byte. Raises OSError when
    something cannot be read. Parts of an unfinished download are not counted.
    """
    if path.is_dir():
        return _together(path, (file for file in path.rglob("*") if file.is_file() and ".part" not in file.suffixes))
    several = parts(path)
    return _together(path.parent, several) if len(several) > 1 else f"sha256:{file_sha256(path)}"


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file. Blocking."""
    return file_digest(path).hexdigest()


def file_digest(path: Path) -> hashlib._Hash:
    """Return the SHA-256 of what a file holds so far, to go on with. Blocking; ends early when nobody waits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            go_on()
            digest.update(block)
    return digest


def _together(folder: Path, files: Iterable[Path]) -> str:
    whole = hashlib.sha256()
    for file in sorted(files, key=lambda child: child.relative_to(folder).as_posix()):
        whole.update(f"{file_sha256(file)}  {file.relative_to(folder).as_posix()}\n".encode())
    return f"sha256:{whole.hexdigest()}"
