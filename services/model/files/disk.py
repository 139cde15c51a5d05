"""Writing what arrives: what a full or read-only disk means, and how a file appears whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aima_core.errors import ExecutionFailed

FULL = (errno.ENOSPC, errno.EDQUOT)


def disk_full(folder: Path) -> ExecutionFailed:
    """Return the refusal of a disk without room."""
    return ExecutionFailed(f"no space left in {folder}", reason="DISK_FULL", folder=str(folder))


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a disk's refusals into ExecutionFailed (DISK_FULL, FOLDER_NOT_WRITABLE), each naming the folder."""
    try:
        yield
    except OSError as fault:
        if fault.errno in FULL:
            raise disk_full(folder) from fault
        why = fault.strerror or type(fault).__name__
        raise ExecutionFailed(
            f"cannot write in {folder}: {why}", reason="FOLDER_NOT_WRITABLE", folder=str(folder)
        ) from fault


def check_room(folder: Path, size: int) -> None:
    """Raise ExecutionFailed (DISK_FULL) at once when `size` more bytes do not fit, not after hours."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free < size:
            raise disk_full(folder)


def publish(part: Path, path: Path) -> None:
    """Rename a finished file into place so that it survives a power cut."""
    with writing(path.parent):
        for target in (part, path.parent):
            descriptor = os.open(target, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if target == part:
                part.replace(path)
