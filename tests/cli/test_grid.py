"""Columns that are drawn without rich look as if rich drew them."""

from __future__ import annotations

import io
from typing import Any

import pytest
import rich.markup
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.cli.show import grid
from services.cli.show.console import escape

TEXTS = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Mn", "Me")), max_size=12
)


def by_rich(table: Table) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=500, soft_wrap=True).print(table)
    return [line.rstrip(" ") for line in file.getvalue().split("\n")]


def by_grid(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.rstrip(" ") for line in capsys.readouterr().out.split("\n")]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(TEXTS, min_size=n, max_size=n), min_size=1, max_size=4))
)
def test_a_table_without_wrapping_is_as_rich_draws_it(capsys: Any, rows: list[list[str]]) -> None:
    names = [f"c{number}" for number in range(len(rows[0]))]
    table = Table(*names, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*map(Text, row))
    grid.table(names, list(zip(*rows, strict=True)), [1] * len(names))
    assert by_grid(capsys) == by_rich(table)


@pytest.mark.parametrize("width", ["80", "12"])
def test_what_is_too_wide_is_wrapped(width: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("COLUMNS", width)
    grid.pairs([("key", "one two three")])
    shown = capsys.readouterr().out
    assert shown.split() == ["key", "one", "two", "three"]
    assert max(map(len, shown.splitlines())) <= int(width)
    assert len(shown.splitlines()) == (1 if width == "80" else 2)


def test_a_cell_may_have_several_lines(capsys: Any) -> None:
    grid.table(["a", "b"], [["1\n22", "3"], ["x", "y\nz"]], [1, 1])
    assert capsys.readouterr().out == "a   b\n1   x\n22\n3   y\n    z\n"


@given(st.text(st.sampled_from("\\[]/a#@ b"), max_size=12))
def test_text_is_escaped_as_rich_does(text: str) -> None:
    assert escape(text) == rich.markup.escape(text)
