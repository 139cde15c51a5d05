"""`aima status`: the bus, the domains, the services and the memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import typer

from aima_core.errors import AimaError
from services.cli.domains import names
from services.cli.door import client_settings
from services.cli.door.door import Door, DoorAddress
from services.cli.door.session import with_door
from services.cli.shared_options import ApiKey, Config, Output, Url
from services.cli.show.console import Format, bold, dim, out, red
from services.cli.show.output import document
from services.cli.show.tables import rows

_AT_ONCE = 16  # services whose status is requested at the same time


def status(
    output: Output = Format.TABLE,
    url: Url = "",
    api_key: ApiKey = "",
    config: Config = None,
) -> None:
    """Show the bus, the domains, the services and the memory. Fails if a domain is down."""
    address = DoorAddress(url, api_key, config)
    report = with_door(address, lambda door: _status(door, address))
    _show(report, url, output)
    if not report["domains"] or any(domain["state"] == "down" for domain in report["domains"]):
        raise typer.Exit(1)


def _show(report: dict[str, Any], url: str, output: Format) -> None:
    if output is not Format.TABLE:
        document(report, output)
        return
    if url:
        out.print("gateway ", bold(url))
    else:
        out.print("bus   ", bold(report["nats"]), "   data ", bold(report["data"]), f"   node {report['node']}")
    rows(report["domains"], ("domain", "state", "version") if url else ("domain", "state", "pid", "version"))
    out.print()
    if report["error"]:
        out.print(red(f"the services cannot be listed: {report['error']}"))
    elif report["services"]:
        rows(report["services"], ("id", "status", "model_id", "replicas", "active_replicas", "summary"))
    else:
        out.print(dim("no services; create one with `aima service create --model-id ...`"))
    if memory := report["memory"]:
        gib = {key: f"{value / 2**30:.1f}" for key, value in memory.items()}
        out.print(
            f"\nmemory {gib['used']} of {gib['total']} GiB in use; {gib['reserved']} of {gib['budget']} GiB reserved; "
            f"pressure {report['pressure']}"
        )


async def _status(door: Door, address: DoorAddress) -> dict[str, Any]:
    """Return the status document. With a gateway, the fields about this machine's bus and processes are None."""
    serving, (services, error), resources = await asyncio.gather(
        door.domains(), _services(door), _ask_or_none(door, "resource.status", {})
    )
    settings = None if address.url else client_settings.read(address.config)
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
        "services": services,
        "error": error,
        "memory": (resources or {}).get("memory"),
        "pressure": (resources or {}).get("pressure"),
    }


async def _services(door: Door) -> tuple[list[dict[str, Any]], str | None]:
    """Return the services, each with its status summary, and an error message: None if they can be listed."""
    try:
        services = (await door.ask("service.list", {"limit": 1000}, timeout=3)).data["services"]
    except AimaError as error:
        return [], error.message
    at_once = asyncio.Semaphore(_AT_ONCE)

    async def summed_up(service: dict[str, Any]) -> dict[str, Any]:
        async with at_once:
            return {**service, **await _summary(door, service["id"])}

    return await asyncio.gather(*map(summed_up, services)), None


async def _summary(door: Door, service_id: str) -> dict[str, Any]:
    answer = await _ask_or_none(door, "service.status", {"service_id": service_id})
    return {"summary": answer["summary"]} if answer else {}


async def _ask_or_none(door: Door, unit: str, data: dict[str, Any]) -> dict[str, Any] | None:
    """Return a unit's answer, or None if the unit fails. The command then shows the rest of the status."""
    with contextlib.suppress(AimaError):
        answer: dict[str, Any] = (await door.ask(unit, data, timeout=3)).data
        return answer
    return None


def _up(data: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        answer: dict[str, Any] = json.loads((data / "up.json").read_text())
        return answer
    return {}
