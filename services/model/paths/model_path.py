"""The path of a model's file or folder: on the disk, in the list of a hub, or in a package.

The readers and the selection use only these methods. So the same code reads a file on the disk, and a file of which a
hub has sent no byte yet. A `pathlib.Path` has all of these methods; `sources/listed_path.py` has them for a list.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Literal, Protocol, Self, TypeVar

from aima_core.errors import ValidationFailed

MAX_FILES = 20_000  # files and folders in a folder of a model
MAX_DEPTH = 4  # folders in folders


class Sized(Protocol):
    """A result of `stat`, as far as a model needs it."""

    @property
    def st_size(self) -> int:
        """Bytes of the file."""


class ModelPath(Protocol):
    """The methods of `pathlib.Path` that a model needs."""

    @property
    def name(self) -> str: ...
    @property
    def stem(self) -> str: ...
    @property
    def suffix(self) -> str: ...
    @property
    def parent(self) -> Self: ...
    def __truediv__(self, key: str, /) -> Self: ...
    def with_name(self, name: str, /) -> Self: ...
    def is_file(self) -> bool: ...
    def is_dir(self) -> bool: ...
    def iterdir(self) -> Iterable[Self]: ...
    def stat(self) -> Sized: ...
    def open(self, mode: Literal["rb"], /) -> IO[bytes]: ...


P = TypeVar("P", bound=ModelPath)


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
