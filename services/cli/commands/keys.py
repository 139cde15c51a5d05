"""`aima keys`: the keys that the gateway's doors accept, in short forms of its units."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any

import typer

from aima_core.bus.directory import UnitInfo
from aima_core.errors import AimaError, NotFound, ValidationFailed
from aima_core.suggestions import did_you_mean, nearest
from services.cli.door.door import DoorAddress
from services.cli.door.opening import open_door
from services.cli.shared_options import ApiKey, Columns, Config, Output, Url, listed
from services.cli.show.console import Format, err
from services.cli.show.output import document
from services.cli.units import completion, flags, unit_call, unit_command
from services.cli.units.flags import Flag
from services.cli.units.unit_call import CallOptions

app = typer.Typer(help="Make, list and revoke the keys that the gateway accepts.", no_args_is_help=True)

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_NAMES = {"name": "NAME", "scopes": "--scope", "models": "--model", "key_id": "ID"}  # by field, as they are typed here
_SHOWN = ("id", "name", "scopes", "models", "expires_at", "expired", "tokens_today")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", metavar="DOMAIN:RISK", help="inference:medium, *:high; again for more. Else *:medium."),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="A model or service that it may use; without any, all.")
    ] = None,
    expires_in: Annotated[str, typer.Option("--expires-in", metavar="30d", help="Seconds, or 90s, 10m, 2h, 30d.")] = "",
    requests: Annotated[int | None, typer.Option("--requests-per-minute", min=0, help="0: no limit.")] = None,
    tokens: Annotated[int | None, typer.Option("--tokens-per-day", min=0, help="0: no limit.")] = None,
    output: Output = Format.TABLE,
    url: Url = "",
    api_key: ApiKey = "",
    config: Config = None,
) -> None:
    """Make a key; it is shown this once."""
    data = {
        "name": name,
        "scopes": scope,
        "models": model,
        "expires_in": seconds(expires_in) if expires_in else None,
        "requests_per_minute": requests,
        "tokens_per_day": tokens,
    }
    data = {field: value for field, value in data.items() if value is not None}
    document(asyncio.run(_ask("gateway.create_key", data, DoorAddress(url, api_key, config), output)), output)
    if output is Format.TABLE:
        err.print("[dim]keep it: nobody can show it again. It goes into the header Authorization: Bearer KEY[/]")


@app.command("list")
def list_keys(
    output: Output = Format.TABLE,
    columns: Columns = "",
    url: Url = "",
    api_key: ApiKey = "",
    config: Config = None,
) -> None:
    """List the keys that there are."""
    shown = listed(columns, output) or _SHOWN
    found = asyncio.run(_ask("gateway.list_keys", {"limit": 1000}, DoorAddress(url, api_key, config), output))
    document(found, output, shown)


@app.command()
def revoke(
    key_id: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="Id of the key, key-7f3a09c1.",
            autocompletion=completion.listed("gateway.list_keys"),
        ),
    ],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Ask no questions: it is meant.")] = False,
    output: Output = Format.TABLE,
    url: Url = "",
    api_key: ApiKey = "",
    config: Config = None,
) -> None:
    """Make a key worthless, at once and for good."""
    document(asyncio.run(_revoke(key_id, DoorAddress(url, api_key, config), output, not yes)), output)


def seconds(text: str) -> float:
    """Return a duration in seconds; raise ValidationFailed for what is none."""
    number, unit = (text[:-1], text[-1:]) if text[-1:] in _SECONDS else (text, "s")
    try:
        return float(number) * _SECONDS[unit]
    except ValueError:
        told = "seconds, or 90s, 10m, 2h, 30d, 4w"
        raise ValidationFailed(
            f"--expires-in {text}: expected {told}", fields=[{"field": "expires_in", "expected": told}]
        ) from None


async def _revoke(key_id: str, reach: DoorAddress, output: Format, confirming: bool) -> Any:
    try:
        return await _ask("gateway.revoke_key", {"key_id": key_id}, reach, output, confirming)
    except NotFound as error:
        keys: list[dict[str, Any]] = []
        with contextlib.suppress(AimaError):  # who may revoke need not be one who may look
            keys = (await _ask("gateway.list_keys", {"limit": 1000}, reach, output))["keys"]
        meant = [key["id"] for key in keys if key["name"] == key_id] or nearest(key_id, [key["id"] for key in keys])
        raise NotFound(f"{error.message}{did_you_mean(meant)}", **{**error.details, "near": meant}) from error


async def _ask(unit: str, data: dict[str, Any], reach: DoorAddress, output: Format, confirming: bool = False) -> Any:
    async with open_door(reach) as door:
        found = await door.describe(unit)
        if confirming:
            unit_command.confirm(found, data)
        try:
            return await unit_call.answer(door, found, data, CallOptions())
        except ValidationFailed as error:
            raise (flags.named(error, _typed(found, data)) if output is Format.TABLE else error) from error


def _typed(unit: UnitInfo, data: dict[str, Any]) -> Iterator[Flag]:
    """Yield the flags of a unit by the names that they have here; of a list of one that one stands for it."""
    for flag in flags.flags_of(unit):
        name = _NAMES.get(flag.field, flag.name)
        if isinstance(given := data.get(flag.field), list) and len(given) == 1:
            yield replace(flag, field=f"{flag.field}.0", name=name)
        yield replace(flag, name=name)
