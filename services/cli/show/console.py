"""Writes lines to stdout and stderr, with styles at a terminal. Defines the output formats.

This module must not import rich, because the import takes longer than most commands run. Rich draws only tables that
do not fit, progress bars and help.
"""

from __future__ import annotations

import enum
import os
import re
import sys
from functools import partial
from typing import NamedTuple, TextIO

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36", "bold red": "1;31"}
_COLOURLESS = ("dumb", "unknown")
_MARKUP = re.compile(r"(\\*)(\[[a-z#/@][^[]*?])")


class Format(enum.StrEnum):
    """The output formats."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


class Styled(NamedTuple):
    """A text with a style, such as `bold`. If `style` is empty, the text has no style."""

    text: str
    style: str

    def shown(self, colour: bool) -> str:
        """Return the text, between escape sequences if the terminal has colours."""
        return f"\x1b[{_CODES[self.style]}m{self.text}\x1b[0m" if colour and self.style and self.text else self.text


def styled(style: str, text: object) -> Styled:
    """Return a text with a style."""
    return Styled(str(text), style)


bold, dim, red, green, yellow, cyan = (
    partial(styled, style) for style in ("bold", "dim", "red", "green", "yellow", "cyan")
)


class Stream:
    """stdout or stderr."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def file(self) -> TextIO:
        """The stream itself, looked up at each use: a test replaces it."""
        file: TextIO = getattr(sys, self._name)
        return file

    @property
    def is_terminal(self) -> bool:
        return self.file.isatty()

    @property
    def has_colours(self) -> bool:
        """Whether to write styles: at a terminal with colours. NO_COLOR and FORCE_COLOR override the default."""
        if os.environ.get("NO_COLOR"):
            return False
        return bool(os.environ.get("FORCE_COLOR")) or (self.is_terminal and os.environ.get("TERM") not in _COLOURLESS)

    def print(self, *parts: str | Styled, end: str = "\n") -> None:
        """Write the parts, one directly after the other."""
        colour = self.has_colours
        texts = (part.shown(colour) if isinstance(part, Styled) else part for part in parts)
        self.file.write("".join(texts) + end)
        self.file.flush()


out = Stream("stdout")
err = Stream("stderr")


def is_wide() -> bool:
    """Whether a table may be wider than a terminal: if stdout is a file or pipe and COLUMNS is not set."""
    return not out.is_terminal and "COLUMNS" not in os.environ


def width() -> int:
    """Return the width of a line in cells: COLUMNS, or the terminal's width, or 80 if both are unknown."""
    if (columns := os.environ.get("COLUMNS", "")).isdecimal() and int(columns):
        return int(columns)
    for stream in (sys.__stdin__, sys.__stdout__, sys.__stderr__):
        try:
            return os.get_terminal_size(stream.fileno()).columns if stream else 80
        except (AttributeError, ValueError, OSError):
            continue
    return 80


def escape(text: str) -> str:
    """Return the text with its markup escaped, so that rich shows it literally. Same as `rich.markup.escape`."""
    escaped = _MARKUP.sub(lambda match: f"{match[1]}{match[1]}\\{match[2]}", text)
    return escaped + "\\" if escaped.endswith("\\") and not escaped.endswith("\\\\") else escaped
