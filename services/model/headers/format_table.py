"""The only list of the formats that AIMA reads. Pure.

A new format needs a line here and a module beside this file. The module has `read(path)`, which returns the `ModelFile`
of a file or raises. The path may be that of a file on a hub (`paths/model_path.py`). For a format without magic bytes,
the module also has `recognises(start, size)`. For a format with `folders`, the module also has `weights(folder)`, which
returns the files of the model in a folder, and `read_folder(folder)`.

This file imports no reader, because the contract (`units.py`) uses the names, and other domains import the contract.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class KnownFormat(NamedTuple):
    """A format that AIMA reads. A file is recognised by its first bytes, never by its name."""

    name: str
    title: str
    """The name as people write it."""
    reader: str
    """Module in this folder that reads the files."""
    suffix: str
    """Suffix of the files. AIMA searches folders, repositories and packages for files with this suffix."""
    magic: bytes | None = None
    """Bytes that every file of the format has at `offset`. If None, the reader's `recognises` decides."""
    offset: int = 0
    folders: bool = False
    """Whether a model may be a folder of several files. If so, the reader's `read_folder` reads the folder."""
    alone: bool = False
    """Whether the header has the tokenizer and the configuration, so that the weights need no files beside them."""

    @property
    def own_suffix(self) -> bool:
        """Whether only this format has the suffix: `.gguf` belongs to GGUF alone, `.bin` to many formats."""
        return self.suffix == f".{self.name}"


# A file has the first format that recognises it, so the formats with magic bytes come first.
FORMATS: Mapping[str, KnownFormat] = MappingProxyType(
    {
        known.name: known
        for known in (
            KnownFormat("gguf", "GGUF", "gguf_model", ".gguf", b"GGUF", alone=True),
            KnownFormat("e5s", "E5S", "e5s", ".bin", b"E5S1", alone=True),
            KnownFormat("safetensors", "safetensors", "safetensors", ".safetensors", folders=True),
            KnownFormat("onnx", "ONNX", "onnx", ".onnx"),
        )
    }
)

SUFFIXES = tuple(dict.fromkeys(known.suffix for known in FORMATS.values()))
START = max(16, *(known.offset + len(known.magic or b"") for known in FORMATS.values()))
"""Bytes of a file that are enough to recognise its format."""


def has_magic(known: KnownFormat, start: bytes) -> bool:
    """Return whether the first bytes of a file have the magic bytes of the format."""
    return known.magic is not None and start[known.offset :].startswith(known.magic)


def titles(separator: str = " or ") -> str:
    """Return the names of the formats for a message: `GGUF, E5S, safetensors or ONNX`."""
    *first, last = (known.title for known in FORMATS.values())
    return f"{', '.join(first)}{separator}{last}" if first else last
