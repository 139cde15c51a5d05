"""Detects the format and type of a file or folder of weights from its header; `format_table` lists the formats.

It reads headers only, checks every number in them, and must not run code from a file.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from aima_core.errors import InvalidRequest, NotFound, ValidationFailed
from services.model.headers.format_table import FORMATS, START, SUFFIXES, KnownFormat, has_magic, titles
from services.model.headers.gguf_parts import is_later_part, is_projector, parts
from services.model.headers.model_file import ModelFile, not_a_model

__all__ = ["ModelFile", "Unrecognised", "claimed", "inspect", "loadable", "readable"]


class Unrecognised(ValidationFailed):
    """The file or folder has no weights in a known format. Another program may be able to read it."""


def inspect(path: Path) -> ModelFile:
    """Return the facts of the weights at `path`, a file or a folder. Blocking: reads from the disk.

    Raises NotFound (FILE_NOT_FOUND), InvalidRequest (NOT_READABLE) and ValidationFailed (NOT_A_MODEL, TRUNCATED,
    UNSUPPORTED_FORMAT, AMBIGUOUS), each with `path` in its details.
    """
    with readable(path) as mode:
        return _folder(path) if stat.S_ISDIR(mode) else _file(path)


@contextmanager
def readable(path: Path) -> Iterator[int]:
    """Yield the mode of a file or folder. Convert an OSError, also from the `with` block, to an error of `inspect`."""
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            raise not_a_model(path, "it is neither a file nor a folder")  # reading a pipe would block forever
        yield mode
    except FileNotFoundError as missing:
        raise NotFound(f"there is no file {path}", reason="FILE_NOT_FOUND", path=str(path)) from missing
    except (OSError, ValueError) as fault:  # ValueError: the name contains a NUL
        why = fault.strerror if isinstance(fault, OSError) else str(fault)
        raise InvalidRequest(f"{path} cannot be read: {why}", reason="NOT_READABLE", path=str(path)) from fault


def loadable(path: Path) -> Path:
    """Return the path that an engine loads, for a model that `inspect` accepts.

    For a folder with one GGUF or ONNX model, the path is the file. For a model in several GGUF parts, the path is the
    first part. For a folder of safetensors files, the path is the folder.
    """
    if not path.is_dir():
        return parts(path)[0]
    if _read_as_folder(path) is not None:
        return path
    return parts(_only(path))[0]


def claimed(path: Path) -> KnownFormat | None:
    """Return the known format that a file claims: by its magic bytes, or by a suffix that only this format has.

    Returns None if the file claims no format. For a format without magic bytes, only the suffix counts, because files
    of other formats may start with the same bytes.
    """
    with path.open("rb") as file:
        start = file.read(START)
    formats = FORMATS.values()
    return next((known for known in formats if has_magic(known, start)), None) or next(
        (known for known in formats if known.own_suffix and path.suffix == known.suffix), None
    )


def _file(path: Path) -> ModelFile:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(START)
    if not start:
        raise not_a_model(path, "it is empty")
    for known in FORMATS.values():
        if _recognises(known, start, size):
            read: Callable[[Path], ModelFile] = _reader(known).read
            return read(path)
    raise _unrecognised(path, f"it is not a {titles()} file")


def _folder(folder: Path) -> ModelFile:
    file = _read_as_folder(folder)
    return _file(_only(folder)) if file is None else file


def _read_as_folder(folder: Path) -> ModelFile | None:
    """Return the model that consists of the whole folder, such as safetensors shards; None if there is none."""
    models = (_reader(known).read_folder(folder) for known in FORMATS.values() if known.folders)
    return next((cast(ModelFile, model) for model in models if model is not None), None)


def _only(folder: Path) -> Path:
    """Return the file of the only model in the folder. Raises ValidationFailed for no model or several models."""
    files = sorted(child for child in folder.iterdir() if child.suffix in SUFFIXES and child.is_file())
    models = [file for file in files if not is_projector(file) and not is_later_part(file)]
    if len(models) > 1:
        names = ", ".join(file.name for file in models[:10])
        raise ValidationFailed(
            f"{folder} has several models; give the path of one of them: {names}", reason="AMBIGUOUS", path=str(folder)
        )
    if not models:
        raise _unrecognised(folder, f"the folder has no weight files ({', '.join(SUFFIXES)})")
    return models[0]


def _recognises(known: KnownFormat, start: bytes, size: int) -> bool:
    """Return whether the first bytes of a file of `size` bytes show this format."""
    return has_magic(known, start) if known.magic is not None else _reader(known).recognises(start, size)


def _reader(known: KnownFormat) -> Any:
    """Return the module that reads the format."""
    return import_module(f"services.model.headers.{known.reader}")


def _unrecognised(path: Path, why: str) -> Unrecognised:
    refusal = not_a_model(path, why)
    return Unrecognised(refusal.message, **refusal.details)
