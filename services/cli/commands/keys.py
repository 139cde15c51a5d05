"""`aima keys`: create, list and revoke API keys. Each command is a shortcut for a unit of the gateway domain."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any

import typer

from aima_core.bus.directory import UnitInfo
from aima_core.errors import AimaError, NotFound, ValidationFailed
from aima_core.suggestions import did_you_mean, nearest
from services.cli.door.door import DoorAddress
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
from services.cli.show.console import Format, dim, err
from services.cli.show.output import document
from services.cli.units import completion, flags, unit_call, unit_command
from services.cli.units.flags import Flag
from services.cli.units.unit_call import CallOptions

app = typer.Typer(help="Create, list and revoke API keys of the gateway.", no_args_is_help=True)

_NO_OPTIONS = CallOptions()
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
# the options and arguments of these commands, by field of the unit
_NAMES = {"name": "NAME", "scopes": "--scope", "models": "--model", "key_id": "ID"}
_SHOWN = ("id", "name", "scopes", "models", "expires_at", "expired", "tokens_today")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name of the key, recorded as the principal of its requests.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope",
            metavar="DOMAIN:RISK",
            help="A domain and its highest risk: inference:medium, *:high. Repeatable. Default: *:medium.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="A model or service the key may use; repeatable. Default: all.")
    ] = None,
    expires_in: Annotated[
        str,
        typer.Option("--expires-in", metavar="30d", help="Lifetime of the key: seconds, or 90s, 10m, 2h, 30d, 4w."),
    ] = "",
    requests: Annotated[int | None, typer.Option("--requests-per-minute", min=0, help="0: no limit.")] = None,
    tokens: Annotated[int | None, typer.Option("--tokens-per-day", min=0, help="0: no limit.")] = None,
    dry_run: DryRun = False,
    key: Key = "",
    timeout: Timeout = None,
    principal: As = "",
    output: Output = Format.TABLE,
    url: Url = "",
    api_key: ApiKey = "",
    config: Config = None,
) -> None:
    """Create a key. The key is shown once and not stored."""
    data = {
        "name": name,
        "scopes": scope,
        "models": model,
        "expires_in": seconds(expires_in) if expires_in else None,
        "requests_per_minute": requests,
        "tokens_per_day": tokens,
    }
    data = {field: value for field, value in data.items() if value is not None}
    options = CallOptions(dry_run, key, None, timeout, principal)
    document(_ask("gateway.create_key", data, DoorAddress(url, api_key, config), output, options), output)
    if output is Format.TABLE and not dry_run:
        err.print(dim("Store the key: it is not shown again. Send it as the header Authorization: Bearer KEY"))


@app.command("list")
def list_keys(
    output: Output = Format.TABLE,
    columns: Columns = "",
    url: Url = "",
    api_key: ApiKey = "",
    config: Config = None,
) -> None:
    """List the keys."""
    shown = column_names(columns, output) or _SHOWN
    keys = _ask("gateway.list_keys", {"limit": 1000}, DoorAddress(url, api_key, config), output)
    document(keys, output, shown)


@app.command()
def revoke(
    key_id: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="Id of the key, such as key-7f3a09c1.",
            autocompletion=completion.listed("gateway.list_keys"),
        ),
    ],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask for confirmation.")] = False,
    dry_run: DryRun = False,
    key: Key = "",
    expect: Expect = None,
    timeout: Timeout = None,
    principal: As = "",
    output: Output = Format.TABLE,
    url: Url = "",
    api_key: ApiKey = "",
    config: Config = None,
) -> None:
    """Revoke a key, immediately and permanently."""
    options = CallOptions(dry_run, key, expect, timeout, principal)
    document(_revoke(key_id, DoorAddress(url, api_key, config), output, options, not (yes or dry_run)), output)


def seconds(text: str) -> float:
    """Return a duration such as `30d` in seconds; raise ValidationFailed for any other text."""
    number, unit = (text[:-1], text[-1:]) if text[-1:] in _SECONDS else (text, "s")
    try:
        return float(number) * _SECONDS[unit]
    except ValueError:
        expected = "seconds, or 90s, 10m, 2h, 30d, 4w"
        raise ValidationFailed(
            f"--expires-in {text}: expected {expected}", fields=[{"field": "expires_in", "expected": expected}]
        ) from None


def _revoke(key_id: str, address: DoorAddress, output: Format, options: CallOptions, confirming: bool) -> Any:
    try:
        return _ask("gateway.revoke_key", {"key_id": key_id}, address, output, options, confirming)
    except NotFound as error:
        keys: list[dict[str, Any]] = []
        with contextlib.suppress(AimaError):  # the right to revoke keys does not include the right to list keys
            keys = _ask("gateway.list_keys", {"limit": 1000}, address, output)["keys"]
        suggestions = [key["id"] for key in keys if key["name"] == key_id] or nearest(
            key_id, [key["id"] for key in keys]
        )
        raise NotFound(
            f"{error.message}{did_you_mean(suggestions)}", **{**error.details, "near": suggestions}
        ) from error


def _ask(
    unit: str,
    data: dict[str, Any],
    address: DoorAddress,
    output: Format,
    options: CallOptions = _NO_OPTIONS,
    confirming: bool = False,
) -> Any:
    description = with_door(address, lambda door: door.describe(unit))
    if confirming:
        unit_command.confirm(description, data)
    try:
        return with_door(address, lambda door: unit_call.answer(door, description, data, options))
    except ValidationFailed as error:
        raise (flags.named(error, _flags(description, data)) if output is Format.TABLE else error) from error


def _flags(unit: UnitInfo, data: dict[str, Any]) -> Iterator[Flag]:
    """Yield the unit's flags, with the names that the options of `aima keys` have.

    If a list has a single item, also yield a flag for the item: `scopes.0` is --scope.
    """
    for flag in flags.flags_of(unit):
        name = _NAMES.get(flag.field, flag.name)
        if isinstance(value := data.get(flag.field), list) and len(value) == 1:
            yield replace(flag, field=f"{flag.field}.0", name=name)
        yield replace(flag, name=name)
