"""`aima status`: the bus, the domains, the services and the memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape

from aima_core.errors import AimaError
from services.cli.domains import names
from services.cli.door import bus_door
from services.cli.door.door import Door, DoorAddress
from services.cli.door.opening import open_door
from services.cli.shared_options import ApiKey, Config, Output, Url
from services.cli.show.console import Format, out
from services.cli.show.output import document
from services.cli.show.tables import rows


def status(
    output: Output = Format.TABLE,
    url: Url = "",
    api_key: ApiKey = "",
    config: Config = None,
) -> None:
    """Show the bus, the domains, the services and the memory. Fails when no domain serves."""
    reach = DoorAddress(url, api_key, config)
    found = asyncio.run(_status(reach))
    _show(found, url, output)
    if not any(domain["state"] == "serving" for domain in found["domains"]):
        raise typer.Exit(1)


def _show(found: dict[str, Any], url: str, output: Format) -> None:
    if output is not Format.TABLE:
        document(found, output)
        return
    if url:
        out.print(f"gateway [bold]{escape(url)}[/]", highlight=False)
    else:
        told = f"bus   [bold]{found['nats']}[/]   data [bold]{escape(found['data'])}[/]   node {found['node']}"
        out.print(told, highlight=False)
    rows(found["domains"], ("domain", "state", "version") if url else ("domain", "state", "pid", "version"))
    out.print()
    if found["error"]:
        out.print(f"[red]the services are not known: {escape(found['error'])}[/]")
    elif found["services"]:
        rows(found["services"], ("id", "status", "model_id", "replicas", "active_replicas", "summary"))
    else:
        out.print("[dim]no services; `aima service create --model-id ...` makes one[/]")
    if memory := found["memory"]:
        gib = {key: f"{value / 2**30:.1f}" for key, value in memory.items()}
        out.print(
            f"\nmemory {gib['used']} of {gib['total']} GiB in use; {gib['reserved']} of {gib['budget']} GiB reserved; "
            f"pressure {found['pressure']}",
            highlight=False,
        )


async def _status(reach: DoorAddress) -> dict[str, Any]:
    """Return what is so; of a gateway's machine only what its units tell."""
    async with open_door(reach) as door:
        there = await door.domains()
        services, error = await _services(door)
        resources = await _maybe(door, "resource.status", {})
        summaries = [{**service, **await _summary(door, service["id"])} for service in services]
    settings = None if reach.url else bus_door.settings(reach.config)
    running = _up(settings.data) if settings else {}
    expected = () if reach.url else names()
    domains = [
        {
            "domain": name,
            "state": "serving" if name in there else "down",
            "pid": running.get("children", {}).get(name),
            "version": there[name].version if name in there else None,
        }
        for name in sorted({*expected, *there})
    ]
    return {
        "gateway": reach.url or None,
        "nats": settings.nats.url if settings else None,
        "data": str(settings.data) if settings else None,
        "node": settings.node if settings else None,
        "up": running.get("pid"),
        "domains": domains,
        "services": summaries,
        "error": error,
        "memory": (resources or {}).get("memory"),
        "pressure": (resources or {}).get("pressure"),
    }


async def _services(door: Door) -> tuple[list[dict[str, Any]], str | None]:
    try:
        return (await door.ask("service.list", {"limit": 1000}, timeout=3)).data["services"], None
    except AimaError as error:
        return [], error.message


async def _summary(door: Door, service_id: str) -> dict[str, Any]:
    found = await _maybe(door, "service.status", {"service_id": service_id})
    return {"summary": found["summary"]} if found else {}


async def _maybe(door: Door, unit: str, data: dict[str, Any]) -> dict[str, Any] | None:
    """Return the answer, or None: a status is there to show what does not answer, too."""
    with contextlib.suppress(AimaError):
        found: dict[str, Any] = (await door.ask(unit, data, timeout=3)).data
        return found
    return None


def _up(data: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads((data / "up.json").read_text())
        return found
    return {}
