"""The models that a folder may have, by the names of its files: the one rule for disks, hubs and packages.

A candidate is what names promise. Whether it is a model, its reader decides: `formats.read_candidate`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic

from services.model.headers.format_table import FORMATS, KnownFormat, has_magic
from services.model.headers.gguf_parts import PART
from services.model.paths.file_names import is_auxiliary, quantization
from services.model.paths.folder_walk import MAX_DEPTH, children, folders
from services.model.paths.model_path import P

MAX_PROBED = 64  # files without a suffix of their own format, whose first bytes are read


@dataclass(frozen=True)
class Candidate(Generic[P]):
    """A model by its name. `path`: what an engine loads, a file or a folder. `home`: the folders above its files."""

    known: KnownFormat
    path: P
    files: tuple[P, ...]
    home: tuple[str, ...]
    stem: str
    """The path without suffix and without the number of a part, relative to the searched folder: `Q4_1/tiny`."""

    @property
    def quantization(self) -> str | None:
        """The quantisation in the name, in capitals."""
        return quantization(self.stem)

    @property
    def auxiliary(self) -> bool:
        """Whether the name is usual for a file that only belongs to a model."""
        return is_auxiliary(self.stem)

    @property
    def size(self) -> int:
        """Bytes of the weights."""
        return sum(file.stat().st_size for file in self.files)

    def goes_by(self, tag: str) -> bool:
        """Return whether a tag means this candidate: its quantisation, its name, or its folder."""
        suffix, base = self.known.suffix, self.stem.rpartition("/")[2]
        names = (self.quantization or "", self.stem, base, f"{self.stem}{suffix}", f"{base}{suffix}", *self.home)
        return tag.upper() in {name.upper() for name in names}


def searched(format_: str | None = None) -> list[KnownFormat]:
    """Return the formats in the order in which a folder is searched for them; only `format_` if it is given.

    Formats with a suffix of their own come first: a `.bin` file may be anything.
    """
    if format_ is not None:
        return [FORMATS[format_]]
    return sorted(FORMATS.values(), key=lambda known: not known.own_suffix)


def reader(known: KnownFormat) -> Any:
    """Return the module that reads the format."""
    return import_module(f"services.model.headers.{known.reader}")


def candidates(root: P, known: KnownFormat, depth: int = MAX_DEPTH) -> list[Candidate[P]]:
    """Return the candidates of one format in a folder and its subfolders.

    GGUF files count at every depth, because a repository may have a folder for each quantisation. Of the other formats,
    only the shallowest folders with weights count: deeper ones have the same weights in another layout. Raises
    ValidationFailed (TRUNCATED, NOT_A_MODEL, AMBIGUOUS) for a folder whose files cannot be one model.
    """
    models: list[Candidate[P]] = []
    for home, folder in folders(root, depth):
        if models and known.name != "gguf" and len(models[0].home) < len(home):
            break
        if not known.folders:
            models += _files(known, home, folder)
        elif files := reader(known).weights(folder):
            models.append(Candidate(known, folder, tuple(files), home, "/".join(home)))
    return models


def _files(known: KnownFormat, home: tuple[str, ...], folder: P) -> Iterator[Candidate[P]]:
    """Yield the candidates of a format whose models are files: one file, or all parts of a split model."""
    models: dict[tuple[str, str], list[P]] = defaultdict(list)
    for file in children(folder):
        if file.suffix == known.suffix and file.is_file():
            part = PART.match(file.name)
            models[(part["stem"], part["count"]) if part else (file.stem, "")].append(file)
    for number, ((stem, _), files) in enumerate(models.items()):
        if known.own_suffix or (number < MAX_PROBED and _has_magic(known, files[0])):
            yield Candidate(known, files[0], tuple(files), home, "/".join((*home, stem)))


def _has_magic(known: KnownFormat, file: P) -> bool:
    with file.open("rb") as opened:
        return has_magic(known, opened.read(known.offset + len(known.magic or b"")))
