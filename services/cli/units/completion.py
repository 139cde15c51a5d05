"""Shell completion: enumerated values, and ids of existing things, looked up when Tab is pressed."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from aima_core.bus.directory import DomainInfo
from aima_core.errors import AimaError
from services.cli.door.door import DoorAddress
from services.cli.door.opening import open_door
from services.cli.show import schema
from services.cli.units.flags import Flag

_TIMEOUT = 0.5  # seconds; longer feels like a hang
_NAMES = ("id", "name")  # fields that identify an item of a list

Complete = Callable[[str], list[tuple[str, str]]]


def values(flag: Flag, domain: str, address: DoorAddress) -> Complete:
    """Return a completer for a flag's value; it returns nothing on any failure."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        candidates = [(str(value), "") for value in schema.choices(flag.schema, flag.root)]
        if not candidates and (unit := _lister(flag, domain)):
            candidates = asyncio.run(_ids(unit, flag.field, address))
        return [(value, about) for value, about in candidates if value.startswith(incomplete)]

    return complete


def listed(unit: str, field: str = "id") -> Complete:
    """Return a completer for the ids that a list unit returns, for built-in commands."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        infos = asyncio.run(_ids(unit, field, _default_address()))
        return [(value, about) for value, about in infos if value.startswith(incomplete)]

    return complete


def answered(unit: str, names: Callable[[Mapping[str, Any]], list[str]]) -> Complete:
    """Return a completer for names taken from a unit's answer."""

    async def ask() -> list[str]:
        with contextlib.suppress(AimaError, TimeoutError):
            async with asyncio.timeout(_TIMEOUT), open_door(_default_address()) as door:
                return names((await door.ask(unit, {}, timeout=_TIMEOUT)).data)
        return []

    def complete(incomplete: str) -> list[tuple[str, str]]:
        return [(name, "") for name in asyncio.run(ask()) if name.startswith(incomplete)]

    return complete


def events(incomplete: str) -> list[tuple[str, str]]:
    """Complete event types: those declared by units, and `<domain>.*` for each domain."""
    infos = asyncio.run(_domains())
    types = {event for info in infos for unit in info.units.values() for event in unit.events}
    types |= {f"{info.name}.*" for info in infos}
    return [(name, "") for name in sorted(types) if name.startswith(incomplete)]


def units(incomplete: str) -> list[tuple[str, str]]:
    """Complete unit names."""
    infos = [unit for info in asyncio.run(_domains()) for unit in info.units.values()]
    return [(unit.name, unit.summary) for unit in infos if unit.name.startswith(incomplete)]


def _default_address() -> DoorAddress:
    return DoorAddress(os.environ.get("AIMA_URL", ""), os.environ.get("AIMA_API_KEY", ""), wait=_TIMEOUT)


async def _domains() -> list[DomainInfo]:
    with contextlib.suppress(AimaError):
        async with open_door(_default_address()) as door:
            return list((await door.domains()).values())
    return []


def _lister(flag: Flag, domain: str) -> str:
    """Return the unit that lists the values of a field: `model.list` for `model_id`, `<domain>.list` for a name."""
    if flag.field.endswith("_id"):
        return f"{flag.field.removesuffix('_id')}.list"
    if flag.field == "model":
        return "model.list"
    return f"{domain}.list" if flag.field == "name" and flag.required else ""


async def _ids(unit: str, field: str, address: DoorAddress) -> list[tuple[str, str]]:
    with contextlib.suppress(AimaError, TimeoutError):
        async with asyncio.timeout(_TIMEOUT), open_door(replace(address, wait=_TIMEOUT)) as door:
            answer = (await door.ask(unit, {}, timeout=_TIMEOUT)).data
            items = next((value for value in answer.values() if isinstance(value, list)), [])
            return [(_name(item, field), str(item.get("status") or "")) for item in items if isinstance(item, Mapping)]
    return []


def _name(item: Mapping[str, Any], field: str) -> str:
    return next((str(item[key]) for key in (field, *_NAMES) if item.get(key)), "")
