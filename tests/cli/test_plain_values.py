"""A value that AIMA converts without typer is equal to typer's own conversion."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cli.plain_values import take_plain
from services.cli.show.console import Format

app = typer.Typer(add_completion=False)
seen: list[Any] = []


@app.command()
def options(
    text: str = "",
    count: Annotated[int | None, typer.Option(min=0, max=9)] = None,
    share: Annotated[float | None, typer.Option(min=0.5)] = None,
    form: Format = Format.TABLE,
    switch: Annotated[bool | None, typer.Option("--switch/--no-switch")] = None,
    words: Annotated[list[str] | None, typer.Option()] = None,
    numbers: Annotated[list[int] | None, typer.Option()] = None,
    extra: Annotated[list[str] | None, typer.Argument()] = None,
) -> None:
    seen.append((text, count, share, form, switch, words, numbers, extra))


def outcome(command: Any, given_words: list[str]) -> Any:
    """Return the values that the command's function gets, or the error message."""
    seen.clear()
    try:
        command.main(list(given_words), standalone_mode=False)
    except typer.BadParameter.__bases__[0] as error:  # a UsageError
        return error.format_message()  # type: ignore[attr-defined]
    return [(type(value), value) for value in seen[0]]


OPTIONS = ["--text", "--count", "--share", "--form", "--words", "--numbers", "--switch", "--no-switch", "--"]
VALUES = [
    "",
    "x",
    "0",
    "7",
    "07",
    "10",
    "-1",
    "1_0",
    "0.5",
    ".5",
    "1e3",
    "nan",
    "inf",
    " 1",
    "\u0661",
    "json",
    "JSON",
    "TABLE",
]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.one_of(st.sampled_from(OPTIONS), st.sampled_from(VALUES)), max_size=6))
def test_both_ways_give_the_same_values_and_the_same_refusals(words: list[str]) -> None:
    assert outcome(take_plain(typer.main.get_command(app)), words) == outcome(typer.main.get_command(app), words)


@pytest.mark.parametrize("option", OPTIONS[:6])
def test_every_option_takes_every_value_as_typer_does(option: str) -> None:
    for words in ([option, value] for value in VALUES):
        assert outcome(take_plain(typer.main.get_command(app)), words) == outcome(typer.main.get_command(app), words)
