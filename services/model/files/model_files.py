"""The files of a model on the disk, and their size. Blocking."""

from __future__ import annotations

from pathlib import Path


def files_of(path: Path) -> list[Path]:
    """Return the file itself, or all files of a folder and its subfolders, without partial downloads (.part)."""
    if not path.is_dir():
        return [path]
    return [file for file in path.rglob("*") if file.is_file() and not file.name.endswith((".part", ".part.tag"))]


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder. Raises OSError."""
    return sum(file.stat().st_size for file in files_of(path))
