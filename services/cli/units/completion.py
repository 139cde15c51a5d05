"""Completion in the shell: values that are enumerated, and ids of what there is, asked for as the key is pressed."""

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

_PATIENCE = 0.5  # seconds: somebody is waiting with a finger on the key
_NAMES = ("id", "name")  # what the items of a list go by

Complete = Callable[[str], list[tuple[str, str]]]


def values(flag: Flag, domain: str, reach: DoorAddress) -> Complete:
    """Return what completes the value of a flag: never an error, at worst nothing."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        known = [(str(value), "") for value in schema.choices(flag.found, flag.root)]
        if not known and (unit := _lister(flag, domain)):
            known = asyncio.run(_ids(unit, flag.field, reach))
        return [(value, about) for value, about in known if value.startswith(incomplete)]

    return complete


def listed(unit: str, field: str = "id") -> Complete:
    """Return what completes to the ids that a unit lists, for a command that is always there."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        found = asyncio.run(_ids(unit, field, _near()))
        return [(value, about) for value, about in found if value.startswith(incomplete)]

    return complete


def answered(unit: str, names: Callable[[Mapping[str, Any]], list[str]]) -> Complete:
    """Return what completes to the names that stand in a unit's answer."""

    async def ask() -> list[str]:
        with contextlib.suppress(AimaError, TimeoutError):
            async with asyncio.timeout(_PATIENCE), open_door(_near()) as door:
                return names((await door.ask(unit, {}, timeout=_PATIENCE)).data)
        return []

    def complete(incomplete: str) -> list[tuple[str, str]]:
        return [(name, "") for name in asyncio.run(ask()) if name.startswith(incomplete)]

    return complete


def events(incomplete: str) -> list[tuple[str, str]]:
    """Return the types of events that units say they lead to, and of each domain all, as `service.*`."""
    found = asyncio.run(_domains())
    types = {event for info in found for unit in info.units.values() for event in unit.events}
    types |= {f"{info.name}.*" for info in found}
    return [(name, "") for name in sorted(types) if name.startswith(incomplete)]


def units(incomplete: str) -> list[tuple[str, str]]:
    """Return the units whose names begin so."""

    found = [unit for info in asyncio.run(_domains()) for unit in info.units.values()]
    return [(unit.name, unit.summary) for unit in found if unit.name.startswith(incomplete)]


def _near() -> DoorAddress:
    return DoorAddress(os.environ.get("AIMA_URL", ""), os.environ.get("AIMA_API_KEY", ""), wait=_PATIENCE)


async def _domains() -> list[DomainInfo]:
    with contextlib.suppress(AimaError):
        async with open_door(_near()) as door:
            return list((await door.domains()).values())
    return []


def _lister(flag: Flag, domain: str) -> str:
    """Return the unit that lists what a field names: `model_id` and `model` models, a name what the domain is about."""
    if flag.field.endswith("_id"):
        return f"{flag.field.removesuffix('_id')}.list"
    if flag.field == "model":
        return "model.list"
    return f"{domain}.list" if flag.field == "name" and flag.required else ""


async def _ids(unit: str, field: str, reach: DoorAddress) -> list[tuple[str, str]]:
    with contextlib.suppress(AimaError, TimeoutError):
        async with asyncio.timeout(_PATIENCE), open_door(replace(reach, wait=_PATIENCE)) as door:
            answer = (await door.ask(unit, {}, timeout=_PATIENCE)).data
            items = next((value for value in answer.values() if isinstance(value, list)), [])
            return [(_name(item, field), str(item.get("status") or "")) for item in items if isinstance(item, Mapping)]
    return []


def _name(item: Mapping[str, Any], field: str) -> str:
    return next((str(item[key]) for key in (field, *_NAMES) if item.get(key)), "")
