"""Writes lines to stdout and stderr, styled at a terminal. Also the output formats.

Rich draws tables that do not fit, progress bars and help. It takes longer to import than most commands take to run, so
plain lines do without it.
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
    """A text with a style, such as `bold`; an empty style is none."""

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
        """Whether styles appear: at a terminal that has them. NO_COLOR and FORCE_COLOR in the environment decide."""
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
    """Whether tables are as wide as needed: in a file or a pipe, unless COLUMNS is set."""
    return not out.is_terminal and "COLUMNS" not in os.environ


def width() -> int:
    """Return the cells of a line on stdout."""
    if (columns := os.environ.get("COLUMNS", "")).isdecimal() and int(columns):
        return int(columns)
    for stream in (sys.__stdin__, sys.__stdout__, sys.__stderr__):
        try:
            return os.get_terminal_size(stream.fileno()).columns if stream else 80
        except (AttributeError, ValueError, OSError):
            continue
    return 80


def escape(text: str) -> str:
    """Return text that rich shows as it is, as `rich.markup.escape` does."""
    escaped = _MARKUP.sub(lambda match: f"{match[1]}{match[1]}\\{match[2]}", text)
    return escaped + "\\" if escaped.endswith("\\") and not escaped.endswith("\\\\") else escaped
