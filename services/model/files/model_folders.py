"""The folders of pulled models, and the atomic move of a finished pull into its final folder. Blocking.

    <domain folder>/pulls/<model id>/   a running pull, with the files so far
    <domain folder>/files/<model id>/   a pulled model; `pulled.json` has the run and the facts of the files

At the end of a pull, AIMA writes `pulled.json` into the pull's folder and then renames the folder. After a crash at any
moment, AIMA finds either an unfinished pull, which it resumes, or a finished pull, which it records.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec

from aima_core.errors import AimaError
from services.model.files.checksum import covered
from services.model.files.disk import writing
from services.model.units import Facts

_RECORD = "pulled.json"


class ArrivedFiles(msgspec.Struct, frozen=True):
    """The files of a finished pull. `path` is relative to the model's folder, `size` in bytes."""

    run: int
    name: str
    type: str
    format: str
    path: str
    size: int
    checksum: str
    facts: Facts
    digests: dict[str, str] = {}
    stats: dict[str, list[int]] = {}
    """Size, times and inode of each file at the end of the pull, by its path relative to the model's folder."""


def pull_folder(root: Path, model_id: str) -> Path:
    """Return the folder of a running pull."""
    return root / "pulls" / model_id


def final_folder(root: Path, model_id: str) -> Path:
    """Return the folder of a pulled model."""
    return root / "files" / model_id


def begin(root: Path, model_id: str) -> Path:
    """Create the folder of a pull and return it. Raises ExecutionFailed (DISK_FULL, FOLDER_NOT_WRITABLE)."""
    folder = pull_folder(root, model_id)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def arrived(root: Path, model_id: str, run: int) -> ArrivedFiles | None:
    """Return the files of a finished run; None if the run must continue. Completes a move that a crash interrupted."""
    files = _read(final_folder(root, model_id), run)
    if files is None and (files := _read(pull_folder(root, model_id), run)):
        _move(root, model_id)
    return files


def keep(root: Path, model_id: str, files: ArrivedFiles) -> None:
    """Write `pulled.json` and move the pull to its final folder, where it replaces the files of an earlier run."""
    folder = pull_folder(root, model_id)
    first = Path(files.path).parts[0]
    with writing(folder):
        files = msgspec.structs.replace(files, stats=_stats(folder, files.path))
        for child in folder.iterdir():
            if child.name != first:
                _remove(child)
        _write(folder, files)
    _move(root, model_id)


def discard_pull(root: Path, model_id: str) -> None:
    """Remove the folder of a pull, if it exists. Raises ExecutionFailed, which names the folder."""
    with writing(root / "pulls"):
        _remove(pull_folder(root, model_id))


def discard(root: Path, model_id: str) -> None:
    """Remove all folders of a pulled model, if they exist. Raises ExecutionFailed, which names the folder."""
    discard_pull(root, model_id)
    with writing(root / "files"):
        _remove(final_folder(root, model_id))


def unchanged(root: Path, model_id: str, checksum: str) -> bool:
    """Return whether no file of a pulled model was written since its pull, by its size, times and inode.

    Returns False if this is unknown, as after a copy of the data folder.
    """
    folder = final_folder(root, model_id)
    try:
        files = msgspec.json.decode((folder / _RECORD).read_bytes(), type=ArrivedFiles)
        return bool(files.stats) and files.checksum == checksum and files.stats == _stats(folder, files.path)
    except (OSError, AimaError, msgspec.MsgspecError):
        return False


def note_intact(root: Path, model_id: str, checksum: str) -> None:
    """Store that the files of a pulled model were read and are intact, so that `unchanged` need not read them again."""
    folder = final_folder(root, model_id)
    try:
        files = msgspec.json.decode((folder / _RECORD).read_bytes(), type=ArrivedFiles)
    except (OSError, msgspec.MsgspecError):
        return  # the files were imported, or their folder is gone
    if files.checksum == checksum:
        with writing(folder):
            _write(folder, msgspec.structs.replace(files, stats=_stats(folder, files.path)))


def _stats(folder: Path, path: str) -> dict[str, list[int]]:
    stats = {file.relative_to(folder).as_posix(): file.stat() for file in covered(folder / path)}
    return {name: [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino] for name, stat in stats.items()}


def _write(folder: Path, files: ArrivedFiles) -> None:
    record = folder / f"{_RECORD}.new"
    with record.open("wb") as file:
        file.write(msgspec.json.encode(files))
        file.flush()
        os.fsync(file.fileno())
    record.replace(folder / _RECORD)
    _sync(folder)


def _move(root: Path, model_id: str) -> None:
    target = final_folder(root, model_id)
    with writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove(target)
        pull_folder(root, model_id).rename(target)
        _sync(target.parent)
        _sync(pull_folder(root, model_id).parent)


def _read(folder: Path, run: int) -> ArrivedFiles | None:
    try:
        files = msgspec.json.decode((folder / _RECORD).read_bytes(), type=ArrivedFiles)
    except (OSError, msgspec.MsgspecError):
        return None
    return files if files.run == run and (folder / files.path).exists() else None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
