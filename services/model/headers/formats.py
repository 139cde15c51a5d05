"""Detects the format and type of a file or folder of weights from its header; `format_table` lists the formats.

It reads headers only, checks every number in them, and must not run code from a file.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from aima_core.errors import AimaError, InvalidRequest, NotFound, ValidationFailed
from services.model.headers.candidates import Candidate, candidates, reader, searched
from services.model.headers.format_table import FORMATS, START, SUFFIXES, KnownFormat, has_magic, titles
from services.model.headers.gguf_parts import parts
from services.model.headers.model_file import Auxiliary, ModelFile, not_a_model
from services.model.paths.folder_walk import MAX_DEPTH, check_folder
from services.model.paths.model_path import ModelPath, P

__all__ = ["ModelFile", "Unrecognised", "claimed", "inspect", "loadable", "located", "read_candidate", "readable"]


class Unrecognised(ValidationFailed):
    """The file or folder has no weights in a known format. Another program may be able to read it."""


def inspect(path: Path, depth: int = MAX_DEPTH) -> ModelFile:
    """Return the facts of the weights at `path`, a file or a folder. Blocking: reads from the disk.

    `depth`: how many folders below a folder are searched. Raises NotFound (FILE_NOT_FOUND), InvalidRequest
    (NOT_READABLE) and ValidationFailed (NOT_A_MODEL, TRUNCATED, UNSUPPORTED_FORMAT, AMBIGUOUS, LINK_OUT_OF_FOLDER,
    TOO_MANY_FILES), each with `path` in its details.
    """
    with readable(path):
        return located(path, depth)[1]


def loadable(path: Path) -> Path:
    """Return the path that an engine loads, for a model that `inspect` accepts. Raises as `inspect`.

    For a folder with one GGUF or ONNX model, the path is the file. For a model in several GGUF parts, the path is the
    first part. For a folder of safetensors files, the path is the folder.
    """
    with readable(path):
        return located(path)[0]


def located(path: P, depth: int = MAX_DEPTH) -> tuple[P, ModelFile]:
    """Return the path that an engine loads, and the facts of the weights. Raises as `inspect` for its content."""
    if path.is_dir():
        return _only(path, depth)
    return parts(path)[0], _file(path)


@contextmanager
def readable(path: Path) -> Iterator[int]:
    """Yield the mode of a file or folder. Convert any OSError, also one of the block, into an error of `inspect`."""
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            raise not_a_model(path, "it is neither a file nor a folder")  # reading a pipe would block forever
        if stat.S_ISDIR(mode):
            check_folder(path)
        yield mode
    except FileNotFoundError as missing:
        raise NotFound(f"there is no file {path}", reason="FILE_NOT_FOUND", path=str(path)) from missing
    except (OSError, ValueError) as fault:  # ValueError: the name contains a NUL
        why = fault.strerror if isinstance(fault, OSError) else str(fault)
        raise InvalidRequest(f"{path} cannot be read: {why}", reason="NOT_READABLE", path=str(path)) from fault


def claimed(path: Path) -> KnownFormat | None:
    """Return the known format that a file claims by magic bytes or by a suffix of this format alone; else None.

    For a format without magic bytes, only the suffix counts, because files of other formats may start with the same
    bytes.
    """
    with path.open("rb") as file:
        start = file.read(START)
    formats = FORMATS.values()
    return next((known for known in formats if has_magic(known, start)), None) or next(
        (known for known in formats if known.own_suffix and path.suffix == known.suffix), None
    )


def read_candidate(candidate: Candidate[P]) -> tuple[P, ModelFile]:
    """Return the path that an engine loads, and the facts of the weights. Raises ValidationFailed as `inspect`."""
    if not candidate.known.folders:
        return parts(candidate.path)[0], _file(candidate.path)
    return candidate.path, cast(ModelFile, reader(candidate.known).read_folder(candidate.path))


def _file(path: ModelPath) -> ModelFile:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(START)
    if not start:
        raise not_a_model(path, "it is empty")
    for known in FORMATS.values():
        if _recognises(known, start, size):
            read: Callable[[ModelPath], ModelFile] = reader(known).read
            return read(path)
    raise _unrecognised(path, f"it is not a {titles()} file")


def _only(folder: P, depth: int) -> tuple[P, ModelFile]:
    """Return the path and the facts of the only model in the folder, in the first format that has one."""
    refused: list[AimaError] = []
    for known in searched():
        models: list[tuple[Candidate[P], tuple[P, ModelFile] | ValidationFailed]] = []
        for candidate in candidates(folder, known, depth):
            try:
                models.append((candidate, read_candidate(candidate)))
            except Auxiliary as refusal:
                refused.append(refusal)
            except ValidationFailed as refusal:
                models.append((candidate, refusal))
        if models:
            return _single(folder, models)
    if refused:
        raise refused[0]
    raise _unrecognised(folder, f"the folder has no weight files ({', '.join(SUFFIXES)})")


def _single(
    folder: P, models: Sequence[tuple[Candidate[P], tuple[P, ModelFile] | ValidationFailed]]
) -> tuple[P, ModelFile]:
    """Return the only model; raise its refusal, or ValidationFailed (AMBIGUOUS) for several models."""
    plain = [model for model in models if not model[0].auxiliary] or models
    if len(plain) > 1:
        names = ", ".join(candidate.path.name for candidate, _ in plain[:10])
        raise ValidationFailed(
            f"{folder} has several models; give the path of one of them: {names}", reason="AMBIGUOUS", path=str(folder)
        )
    model = plain[0][1]
    if isinstance(model, ValidationFailed):
        raise model
    return model


def _recognises(known: KnownFormat, start: bytes, size: int) -> bool:
    """Return whether a file of `size` bytes has this format, by its first bytes."""
    return has_magic(known, start) if known.magic is not None else reader(known).recognises(start, size)


def _unrecognised(path: ModelPath, why: str) -> Unrecognised:
    refusal = not_a_model(path, why)
    return Unrecognised(refusal.message, **refusal.details)
