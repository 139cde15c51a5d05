"""Converts write errors of the disk to errors of AIMA, and renames a finished file atomically."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aima_core.errors import ExecutionFailed
from aima_core.system.outside_errors import DISK_FULL, cause_of


def disk_full(folder: Path, needed: int | None = None, free: int | None = None) -> ExecutionFailed:
    """Return the error for a full disk; `needed` and `free`: in bytes, None if unknown."""
    sizes = "" if needed is None or free is None else f": {needed / 1e6:,.1f} MB needed, {free / 1e6:,.1f} MB free"
    return ExecutionFailed(
        f"no space left in {folder}{sizes}; free some space and try again", reason="DISK_FULL", folder=str(folder)
    )


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Convert an OSError of the block to ExecutionFailed (DISK_FULL, FOLDER_NOT_WRITABLE) that names the folder."""
    try:
        yield
    except OSError as fault:
        if cause_of(fault).name == DISK_FULL.name:
            raise disk_full(folder) from fault
        why = fault.strerror or type(fault).__name__
        raise ExecutionFailed(
            f"cannot write to {folder}: {why}", reason="FOLDER_NOT_WRITABLE", folder=str(folder)
        ) from fault


def check_room(folder: Path, size: int) -> None:
    """Raise ExecutionFailed (DISK_FULL) if the disk of the folder has fewer than `size` bytes free."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < size:
            raise disk_full(folder, size, free)


def publish(part: Path, path: Path) -> None:
    """Rename a finished file to its final name. Even after a power cut, the final file is complete or absent."""
    with writing(path.parent):
        for target in (part, path.parent):
            descriptor = os.open(target, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if target == part:
                part.replace(path)
