"""Paths in a list of files, of a repository or a package. The readers of model files use them like paths on a disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO, Literal, Self


@dataclass(frozen=True)
class ListedFile:
    """A file in a list. `read_size` returns its bytes, `read` opens its content; both may block and raise AimaError."""

    read_size: Callable[[], int]
    read: Callable[[], IO[bytes]]

    @property
    def st_size(self) -> int:
        """Bytes of the file."""
        return self.read_size()


@dataclass
class FileList:
    """Files by their path, with `/` between folders. `title` names the whole in messages."""

    title: str
    files: Mapping[str, ListedFile]
    folders: dict[tuple[str, ...], list[str]] = field(init=False)

    def __post_init__(self) -> None:
        folders: dict[tuple[str, ...], dict[str, None]] = {(): {}}
        for path in self.files:
            names = tuple(path.split("/"))
            for depth in range(len(names)):
                folders.setdefault(names[:depth], {})[names[depth]] = None
        self.folders = {folder: list(names) for folder, names in folders.items()}

    @property
    def root(self) -> ListedPath:
        """The path of the whole list."""
        return ListedPath(self, ())


@dataclass(frozen=True)
class ListedPath:
    """A path in a list of files; has the methods of `model_path.ModelPath`."""

    listing: FileList
    parts: tuple[str, ...]

    def __str__(self) -> str:
        return "/".join((self.listing.title, *self.parts))

    @cached_property
    def key(self) -> str:
        """The path as in the list."""
        return "/".join(self.parts)

    @property
    def name(self) -> str:
        """The last part of the path; the title of the list for its root."""
        return self.parts[-1] if self.parts else self.listing.title.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return self.name.removesuffix(self.suffix)

    @property
    def suffix(self) -> str:
        """The end of the name from its last dot; empty if the name has none, or if it starts with its only dot."""
        stem, dot, end = self.name.rpartition(".")
        return dot + end if stem and end else ""

    @property
    def parent(self) -> Self:
        """The folder of the path."""
        return type(self)(self.listing, self.parts[:-1])

    def __truediv__(self, key: str, /) -> Self:
        return type(self)(self.listing, (*self.parts, key))

    def with_name(self, name: str, /) -> Self:
        """Return the path of another name in the same folder."""
        return type(self)(self.listing, (*self.parts[:-1], name))

    def is_file(self) -> bool:
        """Return whether the list has this file."""
        return self.key in self.listing.files

    def is_dir(self) -> bool:
        """Return whether the list has files below this path."""
        return self.parts in self.listing.folders

    def iterdir(self) -> Iterator[Self]:
        """Yield the files and folders in this folder."""
        for name in self.listing.folders[self.parts]:
            yield self / name

    def stat(self) -> ListedFile:
        """Return the file, which has its size as `st_size`."""
        return self.listing.files[self.key]

    def open(self, mode: Literal["rb"], /) -> IO[bytes]:  # noqa: ARG002  (there is no other mode)
        """Open the content of the file."""
        return self.listing.files[self.key].read()
