"""Completion in the shell: values that are enumerated, and ids of what there is, asked for as the key is pressed."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from aima_core.errors import AimaError
from services.cli import schema
from services.cli.asking import Reach, open_door
from services.cli.flags import Flag

_PATIENCE = 0.5  # seconds: somebody is waiting with a finger on the key
_NAMES = ("id", "name")  # what the items of a list go by

Complete = Callable[[str], list[tuple[str, str]]]


def values(flag: Flag, domain: str, reach: Reach) -> Complete:
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
        reach = Reach(os.environ.get("AIMA_URL", ""), os.environ.get("AIMA_API_KEY", ""))
        return [
            (value, about) for value, about in asyncio.run(_ids(unit, field, reach)) if value.startswith(incomplete)
        ]

    return complete


def units(incomplete: str) -> list[tuple[str, str]]:
    """Return the units whose names begin so."""

    async def look() -> list[tuple[str, str]]:
        reach = Reach(os.environ.get("AIMA_URL", ""), os.environ.get("AIMA_API_KEY", ""), wait=_PATIENCE)
        with contextlib.suppress(AimaError):
            async with open_door(reach) as door:
                found = (await door.domains()).values()
                return [(name, unit.summary) for info in found for name, unit in info.units.items()]
        return []

    return [(name, about) for name, about in asyncio.run(look()) if name.startswith(incomplete)]


def _lister(flag: Flag, domain: str) -> str:
    """Return the unit that lists what a field names: `model_id` and `model` models, a name what the domain is about."""
    if flag.field.endswith("_id"):
        return f"{flag.field.removesuffix('_id')}.list"
    if flag.field == "model":
        return "model.list"
    return f"{domain}.list" if flag.field == "name" and flag.required else ""


async def _ids(unit: str, field: str, reach: Reach) -> list[tuple[str, str]]:
    with contextlib.suppress(AimaError, TimeoutError):
        async with asyncio.timeout(_PATIENCE), open_door(replace(reach, wait=_PATIENCE)) as door:
            answer = (await door.ask(unit, {}, timeout=_PATIENCE)).data
            items = next((value for value in answer.values() if isinstance(value, list)), [])
            return [(_name(item, field), str(item.get("status") or "")) for item in items if isinstance(item, Mapping)]
    return []


def _name(item: Mapping[str, Any], field: str) -> str:
    return next((str(item[key]) for key in (field, *_NAMES) if item.get(key)), "")
