"""Finds the files of a GGUF model: the parts of a split model, and the projector (an image or audio encoder)."""

from __future__ import annotations

import re
from pathlib import Path

from services.model.headers.model_file import not_a_model, truncated

PART = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
MAX_PARTS = 1000  # the largest published models have fewer than two hundred


def parts(path: Path) -> list[Path]:
    """Return all parts of the split model that the file belongs to; only the file if it belongs to no split model.

    Raises ValidationFailed: TRUNCATED if a part is missing, NOT_A_MODEL if the file's name states an invalid number of
    parts.
    """
    match = PART.match(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    if not 1 <= count <= MAX_PARTS:
        raise not_a_model(path, f"its name states {count} parts; 1 to {MAX_PARTS} are allowed")
    files = [path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    if missing := next((file for file in files if not file.is_file()), None):
        raise truncated(path, f"the file {missing.name} is missing")
    return files


def is_later_part(path: Path) -> bool:
    """Return whether the file is a later part of a split model whose first part is in the folder."""
    match = PART.match(path.name)
    if match is None or match["number"] == "00001":
        return False
    return any(path.parent.glob(f"*-00001-of-{match['count']}.gguf"))


def is_projector(path: Path) -> bool:
    """Return whether the name of the file is that of a projector: the image or audio encoder of another model."""
    return path.suffix == ".gguf" and "mmproj" in path.name.lower()


def has_projector(path: Path) -> bool:
    """Return whether the folder of the model has a projector. A projector itself has none."""
    return not is_projector(path) and any(is_projector(file) for file in path.parent.glob("*.gguf"))
