"""On which line of a TOML file each key stands: tomllib reads the values and keeps no positions.

For text that tomllib has accepted; what it would refuse is no concern of this file.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

Path = tuple[str | int, ...]
"""Where a value is: the keys that lead to it, and in an array its index."""

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
    """Return the line, from 1, of each table, key and array element."""
    return _Reader(text).found


def line_of(known: dict[Path, int], path: Path) -> int | None:
    """Return the line of a path, or of the nearest thing that it is in."""
    while path and path not in known:
        path = path[:-1]
    return known.get(path)


class _Reader:
    def __init__(self, text: str) -> None:
        self.found: dict[Path, int] = {}
        self._tokens = list(_tokens(text))
        self._at = 0
        self._table: Path = ()
        while self._peek():
            self._statement()

    def _peek(self) -> str:
        return self._tokens[self._at][0] if self._at < len(self._tokens) else ""

    def _take(self) -> tuple[str, int]:
        self._at += 1
        return self._tokens[self._at - 1]

    def _statement(self) -> None:
        if self._peek() == "\n":
            self._take()
        elif self._peek() == "[":
            while self._peek() == "[":
                self._take()
            self._table = self._key(())
            while self._peek() == "]":
                self._take()
        else:
            self._value(self._key(self._table))

    def _key(self, within: Path) -> Path:
        """Read `a."b".c` and the equals sign behind it; each part is noted where it stands first."""
        path = within
        while self._peek() not in ("=", "]"):
            part, line = self._take()
            if part != ".":
                path = (*path, _plain(part))
                self.found.setdefault(path, line)
        if self._peek() == "=":
            self._take()
        return path

    def _value(self, path: Path) -> None:
        match self._peek():
            case "{":
                self._inline(path)
            case "[":
                self._array(path)
            case _:
                while self._peek() not in ("", "\n", ",", "]", "}"):
                    self._take()

    def _inline(self, path: Path) -> None:
        self._take()
        while self._peek() != "}":
            if self._peek() in (",", "\n"):
                self._take()
            else:
                self._value(self._key(path))
        self._take()

    def _array(self, path: Path) -> None:
        self._take()
        index = 0
        while self._peek() != "]":
            if self._peek() in (",", "\n"):
                self._take()
            else:
                self.found[*path, index] = self._tokens[self._at][1]
                self._value((*path, index))
                index += 1
        self._take()


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    line = 1
    for token in _TOKEN.finditer(text):
        if token.lastgroup != "skip":
            yield token.group(), line
        line += token.group().count("\n")


def _plain(key: str) -> str:
    return str(tomllib.loads(f"key = {key}")["key"]) if key[0] in "\"'" else key
