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
    """Show the bus, the domains, the services and the memory. Fails if no domain serves."""
    address = DoorAddress(url, api_key, config)
    report = asyncio.run(_status(address))
    _show(report, url, output)
    if not any(domain["state"] == "serving" for domain in report["domains"]):
        raise typer.Exit(1)


def _show(report: dict[str, Any], url: str, output: Format) -> None:
    if output is not Format.TABLE:
        document(report, output)
        return
    if url:
        out.print(f"gateway [bold]{escape(url)}[/]", highlight=False)
    else:
        line = f"bus   [bold]{report['nats']}[/]   data [bold]{escape(report['data'])}[/]   node {report['node']}"
        out.print(line, highlight=False)
    rows(report["domains"], ("domain", "state", "version") if url else ("domain", "state", "pid", "version"))
    out.print()
    if report["error"]:
        out.print(f"[red]the services cannot be listed: {escape(report['error'])}[/]")
    elif report["services"]:
        rows(report["services"], ("id", "status", "model_id", "replicas", "active_replicas", "summary"))
    else:
        out.print("[dim]no services; create one with `aima service create --model-id ...`[/]")
    if memory := report["memory"]:
        gib = {key: f"{value / 2**30:.1f}" for key, value in memory.items()}
        out.print(
            f"\nmemory {gib['used']} of {gib['total']} GiB in use; {gib['reserved']} of {gib['budget']} GiB reserved; "
            f"pressure {report['pressure']}",
            highlight=False,
        )


async def _status(address: DoorAddress) -> dict[str, Any]:
    """Return the status document; of a gateway's machine, only what its units answer."""
    async with open_door(address) as door:
        serving = await door.domains()
        services, error = await _services(door)
        resources = await _ask_or_none(door, "resource.status", {})
        summaries = [{**service, **await _summary(door, service["id"])} for service in services]
    settings = None if address.url else bus_door.settings(address.config)
    running = _up(settings.data) if settings else {}
    expected = () if address.url else names()
    domains = [
        {
            "domain": name,
            "state": "serving" if name in serving else "down",
            "pid": running.get("children", {}).get(name),
            "version": serving[name].version if name in serving else None,
        }
        for name in sorted({*expected, *serving})
    ]
    return {
        "gateway": address.url or None,
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
    answer = await _ask_or_none(door, "service.status", {"service_id": service_id})
    return {"summary": answer["summary"]} if answer else {}


async def _ask_or_none(door: Door, unit: str, data: dict[str, Any]) -> dict[str, Any] | None:
    """Return the answer, or None if the unit fails: the status also shows what does not answer."""
    with contextlib.suppress(AimaError):
        answer: dict[str, Any] = (await door.ask(unit, data, timeout=3)).data
        return answer
    return None


def _up(data: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        answer: dict[str, Any] = json.loads((data / "up.json").read_text())
        return answer
    return {}
