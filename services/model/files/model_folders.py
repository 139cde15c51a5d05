"""Where the files of pulled models lie, and how they get there whole or not at all. Blocking.

    <domain folder>/pulls/<model id>/   a pull under way; what it has so far
    <domain folder>/files/<model id>/   a pulled model; `pulled.json` says of which run, and what was found in it

A pull that is whole is written down in its own folder, then the folder is renamed: after a crash at any moment the
next process finds either a pull to resume or all that it has to record.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec

from services.model.files.disk import writing
from services.model.units import Facts

_NOTE = "pulled.json"


class ArrivedFiles(msgspec.Struct, frozen=True):
    """What a pull has brought. `path` is relative to the model's folder, `size` in bytes."""

    run: int
    name: str
    type: str
    format: str
    path: str
    size: int
    checksum: str
    facts: Facts


def pulling(root: Path, model_id: str) -> Path:
    """Return the folder of a pull under way."""
    return root / "pulls" / model_id


def staying(root: Path, model_id: str) -> Path:
    """Return the folder of a pulled model."""
    return root / "files" / model_id


def begin(root: Path, model_id: str) -> Path:
    """Have the folder for a pull and return it. Raises ExecutionFailed (DISK_FULL, FOLDER_NOT_WRITABLE)."""
    folder = pulling(root, model_id)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def arrived(root: Path, model_id: str, run: int) -> ArrivedFiles | None:
    """Return what this very run has brought, moving it to where it stays if a crash came between; None: go on."""
    noted = _read(staying(root, model_id), run)
    if noted is None and (noted := _read(pulling(root, model_id), run)):
        _move(root, model_id)
    return noted


def keep(root: Path, model_id: str, found: ArrivedFiles) -> None:
    """Write down what a pull has brought and move it to where it stays; what lay there of an earlier run goes."""
    folder = pulling(root, model_id)
    first = Path(found.path).parts[0]
    with writing(folder):
        for other in folder.iterdir():
            if other.name != first:
                _remove(other)
        note = folder / f"{_NOTE}.new"
        with note.open("wb") as file:
            file.write(msgspec.json.encode(found))
            file.flush()
            os.fsync(file.fileno())
        note.replace(folder / _NOTE)
        _sync(folder)
    _move(root, model_id)


def discard_pull(root: Path, model_id: str) -> None:
    """See that nothing is left of a pull. Raises ExecutionFailed naming the folder."""
    with writing(root / "pulls"):
        _remove(pulling(root, model_id))


def discard(root: Path, model_id: str) -> None:
    """See that nothing is left of a pulled model. Raises ExecutionFailed naming the folder."""
    discard_pull(root, model_id)
    with writing(root / "files"):
        _remove(staying(root, model_id))


def _move(root: Path, model_id: str) -> None:
    place = staying(root, model_id)
    with writing(place.parent):
        place.parent.mkdir(parents=True, exist_ok=True)
        _remove(place)
        pulling(root, model_id).rename(place)
        _sync(place.parent)
        _sync(pulling(root, model_id).parent)


def _read(folder: Path, run: int) -> ArrivedFiles | None:
    try:
        found = msgspec.json.decode((folder / _NOTE).read_bytes(), type=ArrivedFiles)
    except (OSError, msgspec.MsgspecError):
        return None
    return found if found.run == run and (folder / found.path).exists() else None


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
