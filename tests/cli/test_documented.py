"""Every command line in the documents can be parsed."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from services.cli.built_in import BUILT_IN, load
from services.cli.main import app
from services.cli.units import flags, unit_command
from services.cli.units.unit_call import read_input
from services.cli.units.unit_command import UnitCommand
from services.gateway.rest.routes import ident_of
from tests.cli.conftest import Shell
from tests.cli.described import every_unit

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cli.md").read_text()
UNITS = {unit.name: unit for unit in every_unit()}


def lines() -> Iterator[str]:
    """Yield every command line in a code block of the documents."""
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        yield from re.findall(r"^    (aima .+)$", document.read_text(), re.MULTILINE)


def context_of(words: list[str]) -> Any:
    """Parse the words of a command line and return the command's context; run nothing."""
    context: Any = typer.main.get_command(app).make_context("aima", words)
    while isinstance(context.command, TyperGroup) and (rest := [*context._protected_args, *context.args]):
        name, command, rest = context.command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)
    return context


@pytest.mark.parametrize("line", sorted(set(lines())))
def test_every_command_line_in_the_documents_can_be_typed(
    shell: Shell, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIMA_DATA", str(shell.one.data))
    words = [word for word in shlex.split(line, comments=True)[1:] if not word.startswith(">")]
    if "--url" in words:  # of a machine that is not there; what it would be asked is the same here
        at = words.index("--url")
        del words[at : at + 2]
    if words[-1] == "--help" or "--install-completion" in words:
        assert CliRunner().invoke(app, [*words[:-1], "--help"], prog_name="aima").exit_code == 0
        return
    context = context_of(words)
    if isinstance(context.command, UnitCommand):
        found, ident = context.command.fields, ident_of(words[0], UNITS)
        flags.read(found, unit_command.typed(found, ident, context.params))
    elif context.info_name in ("call", "exec"):
        unit = UNITS[context.params["unit"]]
        data = read_input(context.params["words"] or [], context.params["given"], unit.input)
        given = {flag.field: data.get(flag.field) for flag in flags.flags_of(unit)}
        assert set(data) <= set(given), f"{unit.name} has no {set(data) - set(given)}"
        assert all(given[field] is not None for field in unit.input.get("required", ())), unit.name


def test_the_table_of_commands_says_what_they_say_of_themselves() -> None:
    rows = re.findall(r"^\| `aima ([a-z-]+)` \| (.+) \|$", PAGE, re.MULTILINE)
    assert {name for name, _ in rows} == set(BUILT_IN) - {"bus", "first-run"}
    for name, said in rows:
        assert said == BUILT_IN[name].about, name


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_a_listing_says_of_a_command_is_what_the_command_says_of_itself(name: str) -> None:
    module, _, attribute = BUILT_IN[name].place.partition(":")
    found = getattr(importlib.import_module(f"services.cli.{module}"), attribute)
    about = typer.main.get_group(found).help if isinstance(found, typer.Typer) else found.__doc__
    assert load(name).name == name
    if name != "exec":  # the same function as call, in other words
        assert BUILT_IN[name].about == " ".join((about or "").split())


def test_every_option_that_all_units_take_is_documented() -> None:
    for word in ("-o", "--output", "--columns", "-q", "--quiet", "--dry-run", "--timeout", "--deadline", "--key",
                 "--idempotency-key", "--expect", "--expected-version", "--as", "--principal", "-y", "--yes", "--url",
                 "--api-key"):  # fmt: skip
        assert f"`{word}" in PAGE, word
    (unit,) = [unit for unit in every_unit() if unit.name == "service.list"]
    known = {word for param in unit_command.command(unit, "", unit_command.DoorAddress()).params for word in param.opts}
    assert {"--output", "--columns", "--deadline", "--principal", "--api-key"} <= known
