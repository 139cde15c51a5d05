"""Finds the line of each key in a TOML file, because tomllib keeps no positions.

The text must be valid TOML: this module does not check the syntax.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

Path = tuple[str | int, ...]
"""The keys that lead to a value. An element of an array has an index as key."""

_TOKEN = re.compile(
    r"""
      (?P<skip>[ \t\r]+|\#[^\n]*)
    | (?P<text>\"{3}(?:\\.|[^\\])*?\"{3,5} | '{3}.*?'{3,5} | "(?:\\.|[^"\\\n])*" | '[^'\n]*')
    | (?P<mark>[\[\]{}=,.\n])
    | (?P<word>[^\s\[\]{}=,.\#"']+)
    """,
    re.VERBOSE | re.DOTALL,
)


def lines(text: str) -> dict[Path, int]:
    """Return the line of each table, key and array element. Lines count from 1."""
    return _Reader(text).lines


def line_of(lines: dict[Path, int], path: Path) -> int | None:
    """Return the line of a path, or of the innermost table or array around the path, or None."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path)


class _Reader:
    def __init__(self, text: str) -> None:
        self.lines: dict[Path, int] = {}
        self._tokens = list(_tokens(text))
        self._index = 0
        self._table: Path = ()
        while self._peek():
            self._statement()

    def _peek(self) -> str:
        return self._tokens[self._index][0] if self._index < len(self._tokens) else ""

    def _next(self) -> tuple[str, int]:
        self._index += 1
        return self._tokens[self._index - 1]

    def _statement(self) -> None:
        if self._peek() == "\n":
            self._next()
        elif self._peek() == "[":
            while self._peek() == "[":
                self._next()
            self._table = self._key(())
            while self._peek() == "]":
                self._next()
        else:
            self._value(self._key(self._table))

    def _key(self, table: Path) -> Path:
        """Read `a."b".c` and the equals sign after it. Records the line where each part first appears."""
        path = table
        while self._peek() not in ("=", "]"):
            part, line = self._next()
            if part != ".":
                path = (*path, _plain(part))
                self.lines.setdefault(path, line)
        if self._peek() == "=":
            self._next()
        return path

    def _value(self, path: Path) -> None:
        match self._peek():
            case "{":
                self._inline(path)
            case "[":
                self._array(path)
            case _:
                while self._peek() not in ("", "\n", ",", "]", "}"):
                    self._next()

    def _inline(self, path: Path) -> None:
        self._next()
        while self._peek() != "}":
            if self._peek() in (",", "\n"):
                self._next()
            else:
                self._value(self._key(path))
        self._next()

    def _array(self, path: Path) -> None:
        self._next()
        index = 0
        while self._peek() != "]":
            if self._peek() in (",", "\n"):
                self._next()
            else:
                self.lines[*path, index] = self._tokens[self._index][1]
                self._value((*path, index))
                index += 1
        self._next()


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    line = 1
    for token in _TOKEN.finditer(text):
        if token.lastgroup != "skip":
            yield token.group(), line
        line += token.group().count("\n")


def _plain(key: str) -> str:
    return str(tomllib.loads(f"key = {key}")["key"]) if key[0] in "\"'" else key
