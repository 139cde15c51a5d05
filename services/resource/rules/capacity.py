"""Decides whether a need fits, and which slots lose their memory for it. Writes the message of a refusal. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from aima_core.errors import InsufficientResources
from services.resource.units import Lack, Pressure, SlotStatus

_ROUNDING = 1e-9  # ten fractions of 0.1 must fit on one GPU, but floats round 0.1
_MOST_NAMED = 5  # the most holders that a message names; the error's details have all holders
_STOP_A_HOLDER = "stop a holder, request less, or use a higher priority"


class Slot(msgspec.Struct, frozen=True, kw_only=True, tag="slot"):
    """A slot. `asked` is the allocated size and `memory` the current limit, in bytes. `since` is in Unix seconds."""

    slot_id: str
    name: str
    asked: int
    memory: int
    gpu_fraction: float
    priority: int
    since: float
    status: SlotStatus = "active"


class Machine(msgspec.Struct, frozen=True, kw_only=True, tag="machine"):
    """The capacity of a machine, in bytes. `gpus` has the ids of its GPUs."""

    node: str
    memory: int = 0
    system_reserve: int = 0
    storage: int = 0
    gpus: tuple[str, ...] = ()
    pressure: Pressure = "low"

    @property
    def budget(self) -> int:
        """The bytes that all slots together may hold."""
        return max(0, self.memory - self.system_reserve)


class Facts(NamedTuple):
    """The measured memory and disk of the machine, in bytes."""

    memory: int
    available: int
    storage: int
    storage_available: int

    @property
    def used_percent(self) -> float:
        """The percentage of memory that all programs together use."""
        return min(100.0, max(0.0, 100 * (self.memory - self.available) / self.memory)) if self.memory else 0.0


class Need(NamedTuple):
    """The memory and the fraction of one GPU that a caller needs.

    `memory` is in bytes. `available` is the number of bytes that the system has available now. If it is None, only the
    budget limits the memory.
    """

    memory: int
    gpu_fraction: float
    priority: int
    available: int | None


def room_for(need: Need, machine: Machine, held: Sequence[Slot]) -> list[Slot]:
    """Return the slots that lose their memory for this need. Empty if the need fits without that.

    Raises InsufficientResources. Only slots with a lower priority lose their memory. Idle slots come first, then slots
    with the lowest priority, then the oldest slots. Returns no slot whose memory is not needed.

    The memory of the returned slots becomes free when their holders have ended. For this need, this memory already
    counts as available to the system. For later needs, it counts as used until it is free.
    """
    rivals = sorted((s for s in held if s.priority < need.priority), key=lambda s: (*_worth(s), s.slot_id))
    victims: list[Slot] = []
    for rival in rivals:
        if _lacking(need, machine, held, victims) is None:
            break
        victims.append(rival)
    lack = _lacking(need, machine, held, victims)
    if lack is not None:
        raise _refusal(lack, need, machine, held)
    for victim in reversed(victims):  # a large slot that comes late in the list may make an earlier slot unnecessary
        others = [other for other in victims if other is not victim]
        if _lacking(need, machine, held, others) is None:
            victims = others
    return victims


def free_memory(machine: Machine, held: Sequence[Slot]) -> int:
    """Return the unreserved bytes of the budget. Negative if the budget has shrunk below the sum of the slots."""
    return machine.budget - sum(slot.memory for slot in held)


def free_accelerators(machine: Machine, held: Sequence[Slot]) -> float:
    """Return how many GPUs are unreserved, including fractions, such as 1.5."""
    return round(len(machine.gpus) - sum(slot.gpu_fraction for slot in held), 9)


def holders(held: Sequence[Slot]) -> list[dict[str, Any]]:
    """Return the slots in the form of a refusal's details, with the largest slot first."""
    fields = ("slot_id", "name", "memory", "priority", "status")
    return [{field: getattr(slot, field) for field in fields} for slot in _by_size(held)]


def _by_size(held: Sequence[Slot]) -> list[Slot]:
    return sorted(held, key=lambda slot: (-slot.memory, slot.slot_id))


def _worth(slot: Slot) -> tuple[bool, int, float]:
    return slot.status != "idle", slot.priority, slot.since


def _lacking(need: Need, machine: Machine, held: Sequence[Slot], victims: Sequence[Slot]) -> Lack | None:
    """Return the resource that is missing even without the victims, or None if the need then fits."""
    staying = [slot for slot in held if slot not in victims]
    if need.gpu_fraction and need.gpu_fraction > free_accelerators(machine, staying) + _ROUNDING:
        return "accelerator"
    if need.memory and need.memory > free_memory(machine, staying):
        return "memory"
    if need.available is not None and need.memory > need.available + sum(slot.memory for slot in victims):
        return "system"
    return None


def _refusal(lack: Lack, need: Need, machine: Machine, held: Sequence[Slot]) -> InsufficientResources:
    details: dict[str, Any] = {"lacking": lack, "holders": holders(held)}
    match lack:
        case "accelerator" if not machine.gpus:
            return InsufficientResources(
                f"no GPU has been detected on {machine.node}, so {need.gpu_fraction:g} of a GPU cannot be reserved; "
                "request gpu_fraction 0, or connect a GPU and run device.detect",
                reason="NO_ACCELERATOR",
                requested=need.gpu_fraction,
                available=0,
                missing=need.gpu_fraction,
                **details,
            )
        case "accelerator":
            free = max(0.0, free_accelerators(machine, held))
            on_gpus = sorted((s for s in held if s.gpu_fraction), key=lambda s: (-s.gpu_fraction, s.slot_id))
            return InsufficientResources(
                f"{need.gpu_fraction:g} GPU requested, but only {free:g} of {len(machine.gpus)} is free; "
                f"{_held_by([f'{s.name} ({s.gpu_fraction:g} GPU, priority {s.priority})' for s in on_gpus], 'a GPU')}; "
                f"{_STOP_A_HOLDER if on_gpus else 'request less'}",
                reason="INSUFFICIENT_ACCELERATORS",
                requested=need.gpu_fraction,
                available=free,
                missing=round(need.gpu_fraction - free, 9),
                **details,
            )
        case "memory":
            free_bytes = max(0, free_memory(machine, held))
            cause = f"only {size(free_bytes)} of the {size(machine.budget)} budget is free"
            hint = _STOP_A_HOLDER if held else "request less"
        case "system":
            free_bytes = need.available or 0
            cause = f"the system has only {size(free_bytes)} available now (budget {size(machine.budget)})"
            hint = f"end other programs{', stop a holder,' if held else ''} or request less"
    missing = need.memory - free_bytes
    by = _held_by([f"{slot.name} ({size(slot.memory)}, priority {slot.priority})" for slot in _by_size(held)], "memory")
    return InsufficientResources(
        f"{size(need.memory)} requested, but {cause}: {size(missing)} is missing; {by}; {hint}",
        reason="INSUFFICIENT_MEMORY" if lack == "memory" else "SYSTEM_MEMORY_LOW",
        requested=need.memory,
        available=free_bytes,
        missing=missing,
        **details,
    )


def _held_by(names: Sequence[str], what: str) -> str:
    if not names:
        return f"no slot holds {what}"
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"held by: {', '.join(names[:_MOST_NAMED])}{more}"


def size(count: int) -> str:
    """Return a number of bytes with its unit, such as `1.5 GiB`."""
    for unit, worth in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= worth:
            return f"{count / worth:.1f} {unit}"
    return f"{count} bytes"
