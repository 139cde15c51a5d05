"""Shell completion of enumerated values, ids and names. Pressing Tab calls a unit that lists the ids and names."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from aima_core.bus.directory import DomainInfo
from aima_core.errors import AimaError
from services.cli.door.door import Door, DoorAddress
from services.cli.door.session import with_door
from services.cli.show import schema
from services.cli.units.flags import Flag

_TIMEOUT = 0.5  # seconds; longer feels like a hang
_NAMES = ("id", "name")  # fields that identify an item of a list

Complete = Callable[[str], list[tuple[str, str]]]


def values(flag: Flag, domain: str, address: DoorAddress) -> Complete:
    """Return a completer for a flag's value. The completer returns an empty list if the unit call fails."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        candidates = [(str(value), "") for value in schema.choices(flag.schema, flag.root)]
        if not candidates and (unit := _lister(flag, domain)):
            candidates = _ids(unit, flag.field, address)
        return [(value, about) for value, about in candidates if value.startswith(incomplete)]

    return complete


def listed(unit: str, field: str = "id") -> Complete:
    """Return a completer for the ids in the answer of a unit such as `gateway.list_keys`."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        infos = _ids(unit, field, _default_address())
        return [(value, about) for value, about in infos if value.startswith(incomplete)]

    return complete


def answered(unit: str, names: Callable[[Mapping[str, Any]], list[str]]) -> Complete:
    """Return a completer for names taken from a unit's answer."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        answer = _ask(unit, _default_address())
        return [(name, "") for name in names(answer) if name.startswith(incomplete)] if answer else []

    return complete


def events(incomplete: str) -> list[tuple[str, str]]:
    """Return completions of an event type: the types that units declare, and `<domain>.*` for each domain."""
    infos = _domains()
    types = {event for info in infos for unit in info.units.values() for event in unit.events}
    types |= {f"{info.name}.*" for info in infos}
    return [(name, "") for name in sorted(types) if name.startswith(incomplete)]


def units(incomplete: str) -> list[tuple[str, str]]:
    """Return completions of a unit's name."""
    infos = [unit for info in _domains() for unit in info.units.values()]
    return [(unit.name, unit.summary) for unit in infos if unit.name.startswith(incomplete)]


def _default_address() -> DoorAddress:
    return DoorAddress(os.environ.get("AIMA_URL", ""), os.environ.get("AIMA_API_KEY", ""), wait=_TIMEOUT)


def _domains() -> list[DomainInfo]:
    with contextlib.suppress(AimaError):
        return list(with_door(_default_address(), lambda door: door.domains()).values())
    return []


def _lister(flag: Flag, domain: str) -> str:
    """Return the unit that lists the values of a field: `model.list` for `model_id`, `<domain>.list` for a name."""
    if flag.field.endswith("_id"):
        return f"{flag.field.removesuffix('_id')}.list"
    if flag.field == "model":
        return "model.list"
    return f"{domain}.list" if flag.field == "name" and flag.required else ""


def _ids(unit: str, field: str, address: DoorAddress) -> list[tuple[str, str]]:
    answer = _ask(unit, replace(address, wait=_TIMEOUT))
    items = next((value for value in answer.values() if isinstance(value, list)), [])
    return [(_name(item, field), str(item.get("status") or "")) for item in items if isinstance(item, Mapping)]


def _ask(unit: str, address: DoorAddress) -> Mapping[str, Any]:
    """Return a unit's answer; empty if the unit fails or does not answer in time."""

    async def ask(door: Door) -> Mapping[str, Any]:
        async with asyncio.timeout(_TIMEOUT):
            return (await door.ask(unit, {}, timeout=_TIMEOUT)).data  # type: ignore[no-any-return]

    with contextlib.suppress(AimaError, TimeoutError):
        return with_door(address, ask)
    return {}


def _name(item: Mapping[str, Any], field: str) -> str:
    return next((str(item[key]) for key in (field, *_NAMES) if item.get(key)), "")
