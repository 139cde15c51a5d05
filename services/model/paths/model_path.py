"""The path of a model's file or folder: on the disk, in the list of a hub, or in a package.

The readers and the selection use only these methods. So the same code reads a file on the disk, and a file of which a
hub has sent no byte yet. A `pathlib.Path` has all of these methods; `selection/listed_path.py` has them for a list.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, Literal, Protocol, Self, TypeVar


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
