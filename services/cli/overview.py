"""`aima status` and `aima version`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import platform
from pathlib import Path
from typing import Any

from aima_core import VERSION
from aima_core.bus import Client
from aima_core.errors import AimaError
from services.cli import asking
from services.cli.domains import names
from services.cli.options import Config, Output
from services.cli.show import Format, document, out, rows


def version(output: Output = Format.TABLE) -> None:
    """Print the version."""
    if output is Format.TABLE:
        out.print(f"aima {VERSION}", highlight=False)
    else:
        document({"aima": VERSION, "python": platform.python_version()}, output)


def status(output: Output = Format.TABLE, config: Config = None) -> None:
    """Show the bus, the domains, the services and the memory."""
    found = asyncio.run(_status(config))
    if output is not Format.TABLE:
        document(found, output)
        return
    out.print(f"bus   [bold]{found['nats']}[/]   data [bold]{found['data']}[/]   node {found['node']}", highlight=False)
    rows(found["domains"], ("domain", "state", "pid", "version"))
    out.print()
    if found["error"]:
        out.print(f"[red]the services are not known: {found['error']}[/]")
    elif found["services"]:
        rows(found["services"], ("id", "status", "model_id", "replicas", "active_replicas", "summary"))
    else:
        out.print("[dim]no services; `aima call service.create model_id=...` makes one[/]")
    if memory := found["memory"]:
        gib = {key: f"{value / 2**30:.1f}" for key, value in memory.items()}
        out.print(
            f"\nmemory {gib['used']} of {gib['total']} GiB in use; {gib['reserved']} of {gib['budget']} GiB reserved; "
            f"pressure {found['pressure']}",
            highlight=False,
        )


async def _status(config: Any) -> dict[str, Any]:
    settings = asking.settings(config)
    running = _up(settings.data)
    async with asking.bus(config) as client:
        infos = {info["name"]: info for info in await client.discover()}
        services, error = await _services(client)
        resources = await _maybe(client, "resource.status", {})
        summaries = [{**service, **await _summary(client, service["id"])} for service in services]
    domains = [
        {
            "domain": name,
            "state": "serving" if name in infos else "down",
            "pid": running.get("children", {}).get(name),
            "version": infos[name]["version"] if name in infos else None,
        }
        for name in sorted({*names(), *infos})
    ]
    return {
        "nats": settings.nats.url,
        "data": str(settings.data),
        "node": settings.node,
        "up": running.get("pid"),
        "domains": domains,
        "services": summaries,
        "error": error,
        "memory": (resources or {}).get("memory"),
        "pressure": (resources or {}).get("pressure"),
    }


async def _services(client: Client) -> tuple[list[dict[str, Any]], str | None]:
    try:
        return (await client.ask("service.list", {"limit": 1000}, timeout=3)).data["services"], None
    except AimaError as error:
        return [], error.message


async def _summary(client: Client, service_id: str) -> dict[str, Any]:
    found = await _maybe(client, "service.status", {"service_id": service_id})
    return {"summary": found["summary"]} if found else {}


async def _maybe(client: Client, unit: str, data: dict[str, Any]) -> dict[str, Any] | None:
    """Return the answer, or None: a status is there to show what does not answer, too."""
    with contextlib.suppress(AimaError):
        found: dict[str, Any] = (await client.ask(unit, data, timeout=3)).data
        return found
    return None


def _up(data: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads((data / "up.json").read_text())
        return found
    return {}
