"""Files in a format that AIMA does not read: their size and checksum are known, nothing else. Blocking.

Such a format must not hide a known one: files that AIMA can read, and damaged ones, are refused as without it.
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
    """Return the model of a file, or of a folder with all files in it. `kind`: its type, as declared.

    Raises ValidationFailed (CONTRADICTED) if the files have a known format, and otherwise as `inspect`, but not
    because no format is recognised.
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
    """Return the model in a known format that the path is; None if it is none. Raises if a file of one is damaged.

    Files of known formats may be parts of an opaque model, such as two ONNX graphs and a tokenizer. Each of them must
    be whole.
    """
    try:
        return inspect(path)
    except ValidationFailed:
        for file in files:
            if claimed(file):
                inspect(file)
        return None
