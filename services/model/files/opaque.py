"""Models in an opaque format: AIMA knows only the size and the checksum of their files. Blocking.

A caller cannot skip the checks of a known format by naming an opaque format: this module refuses files that AIMA can
read, and damaged files of a known format.
"""

from __future__ import annotations

from pathlib import Path

from aima_core.errors import ValidationFailed
from services.model.files.declared import check_declared
from services.model.files.model_files import files_of
from services.model.headers.formats import claimed, inspect, readable
from services.model.headers.model_file import ModelFile, not_a_model
from services.model.units import ModelType


def opaque_model(path: Path, format_: str, kind: ModelType) -> ModelFile:
    """Return the opaque model at a path: one file, or a folder with all files in it. `kind`: the type of the model.

    Raises ValidationFailed (CONTRADICTED) if the files have a known format. Raises the errors of `inspect`, but not for
    an unknown format.
    """
    with readable(path):
        files = files_of(path)
        size = sum(file.stat().st_size for file in files)
        if not size:
            raise not_a_model(path, "it is empty" if path.is_file() else "the folder has no files with content")
        if known := _known_model(path, files):
            check_declared("format", format_, known.format)
    return ModelFile(format=format_, type=kind, name=path.stem, size=size, tensors_end=size)


def _known_model(path: Path, files: list[Path]) -> ModelFile | None:
    """Return the model at the path if its format is known; else None. Raises if a file of a known format is damaged.

    An opaque model may contain files of known formats, such as two ONNX graphs besides a tokenizer. Each of these files
    must be complete.
    """
    try:
        return inspect(path, depth=0)
    except ValidationFailed:
        for file in files:
            if claimed(file):
                inspect(file)
        return None
