"""Draws tables in columns. Rich draws a table whose texts must wrap; any other table needs no slow import."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

from rich.cells import cell_len

from services.cli.show.console import Styled, bold, is_wide, out, styled, width

GAP = 2  # cells between two columns
_DROPPED = dict.fromkeys((7, 8, 11, 12, 13))  # control characters that move the cursor; rich drops them, too


def table(names: Sequence[str], columns: Sequence[Sequence[str]], least: Sequence[int]) -> None:
    """Write columns under their names. `least`: the minimum width of each column, in cells."""
    texts = [[_clean(text) for text in column] for column in columns]
    widths = [max(map(width_of, (name, *column))) for name, column in zip(names, texts, strict=True)]
    if _fits(widths):
        _write([bold(name) for name in names], widths)
        for row in zip(*texts, strict=True):
            _write([styled("", text) for text in row], widths)
        return
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for name, smallest in zip(names, least, strict=True):
        drawn.add_column(Text(name), min_width=smallest, overflow="fold")
    for row in zip(*texts, strict=True):
        drawn.add_row(*map(Text, row))
    _draw(drawn)


def pairs(rows: Sequence[tuple[str, str]]) -> None:
    """Write keys and their values in two columns."""
    cleaned = [(_clean(key), _clean(value)) for key, value in rows]
    widths = [max((width_of(row[side]) for row in cleaned), default=0) for side in (0, 1)]
    if _fits(widths):
        for key, value in cleaned:
            _write([bold(key), styled("", value)], widths)
        return
    from rich.table import Table
    from rich.text import Text

    drawn = Table(show_header=False, box=None, pad_edge=False)
    for key, value in cleaned:
        drawn.add_row(Text(key, "bold"), Text(value))
    _draw(drawn)


def width_of(text: str) -> int:
    """Return the width of a text: the number of terminal cells of its longest line."""
    return max((cell_len(line) for line in text.splitlines()), default=0)


def _fits(widths: Sequence[int]) -> bool:
    return is_wide() or sum(widths) + GAP * (len(widths) - 1) <= width()


def _write(row: Sequence[Styled], widths: Sequence[int]) -> None:
    for line in _lines(row):
        parts: list[str | Styled] = []
        for part, room in zip(line, widths, strict=True):
            parts += [part, " " * (room - cell_len(part.text) + GAP)]
        while parts and not (parts[-1].text if isinstance(parts[-1], Styled) else parts[-1].strip()):
            parts.pop()
        out.print(*parts)


def _lines(row: Sequence[Styled]) -> Iterator[list[Styled]]:
    """Yield the lines of a row. The row has as many lines as its longest cell."""
    for texts in zip_longest(*(part.text.splitlines() or [""] for part in row), fillvalue=""):
        yield [Styled(text, part.style) for text, part in zip(texts, row, strict=True)]


def _clean(text: str) -> str:
    return text.translate(_DROPPED).expandtabs()


def _draw(drawn: object) -> None:
    from rich.console import Console

    Console(file=out.file, width=width()).print(drawn)
