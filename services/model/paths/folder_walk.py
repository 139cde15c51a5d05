"""The files and folders in the folder of a model, on the disk or in a list. Does not follow links out of the folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aima_core.errors import ValidationFailed
from services.model.paths.model_path import P

MAX_FILES = 20_000  # files and folders in a folder of a model
MAX_DEPTH = 4  # folders in folders


def children(folder: P) -> list[P]:
    """Return the files and folders in a folder, sorted by name, without hidden ones."""
    return sorted((child for child in folder.iterdir() if child.name[:1] != "."), key=lambda child: child.name)


def folders(root: P, depth: int = MAX_DEPTH) -> Iterator[tuple[tuple[str, ...], P]]:
    """Yield the folder and its subfolders, the shallowest first, each with its path relative to `root`."""
    level: list[tuple[tuple[str, ...], P]] = [((), root)]
    while level:
        yield from level
        if len(level[0][0]) >= depth:
            return
        level = [((*path, child.name), child) for path, at in level for child in children(at) if _is_folder(child)]


def check_folder(root: Path) -> None:
    """Raise ValidationFailed if a folder on the disk has a link that leads out of it, or too many files."""
    home, count = root.resolve(), 0
    for at, subfolders, files in os.walk(home):
        for name in (*subfolders, *files):
            count += 1
            child = Path(at, name)
            if child.is_symlink() and not child.resolve().is_relative_to(home):
                raise ValidationFailed(
                    f"{root} has the link {child.relative_to(home)}, which leads out of the folder, and AIMA does not"
                    " follow it; give the path of one file, or a copy of the folder without links (cp -rL)",
                    reason="LINK_OUT_OF_FOLDER",
                    path=str(root),
                )
            if count > MAX_FILES:
                raise ValidationFailed(
                    f"{root} has more than {MAX_FILES} files; give the path of the folder with the model",
                    reason="TOO_MANY_FILES",
                    path=str(root),
                )


def _is_folder(path: Any) -> bool:
    return path.is_dir() and not (isinstance(path, Path) and path.is_symlink())
