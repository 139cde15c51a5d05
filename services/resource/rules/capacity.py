"""Whether a need fits, who has to make room for it, and what to say when nobody can. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from aima_core.errors import InsufficientResources
from services.resource.units import Lack, Pressure, SlotStatus

_ROUNDING = 1e-9  # fractions such as 0.1 have no exact binary form; ten of them are still one GPU
_NAMED = 5  # holders that a message names; the details have all


class Slot(msgspec.Struct, frozen=True, kw_only=True, tag="slot"):
    """A reservation. `asked` and `memory` in bytes: as allocated, and as it is limited now. `since` in Unix seconds."""

    slot_id: str
    name: str
    asked: int
    memory: int
    gpu_fraction: float
    priority: int
    since: float
    status: SlotStatus = "active"


class Machine(msgspec.Struct, frozen=True, kw_only=True, tag="machine"):
    """What there is to be had, in bytes; `gpus` by id."""

    node: str
    memory: int = 0
    system_reserve: int = 0
    storage: int = 0
    gpus: tuple[str, ...] = ()
    pressure: Pressure = "low"

    @property
    def budget(self) -> int:
        """Bytes that slots may have in all."""
        return max(0, self.memory - self.system_reserve)


class Facts(NamedTuple):
    """What there is on the machine right now, in bytes."""

    memory: int
    available: int
    storage: int
    storage_available: int

    @property
    def used_percent(self) -> float:
        """Memory in use, by whomever."""
        return min(100.0, max(0.0, 100 * (self.memory - self.available) / self.memory)) if self.memory else 0.0


class Need(NamedTuple):
    """What somebody wants. `memory` and `available` (what the system could give now; None: do not ask) in bytes."""

    memory: int
    gpu_fraction: float
    priority: int
    available: int | None


def room_for(need: Need, machine: Machine, held: Sequence[Slot]) -> list[Slot]:
    """Return the slots that have to make room: none when it fits as it is. Raise InsufficientResources.

    Only slots of lower priority make room: idle ones first, then those of the lowest priority, then the oldest; none
    that can be spared. What they held counts as available to the system: it will be when their holders have ended.
    That is so for this need alone: for every later one it is in use until the system says otherwise.
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
    for victim in reversed(victims):  # a large one that came late may have made an earlier one needless
        spared = [v for v in victims if v is not victim]
        if _lacking(need, machine, held, spared) is None:
            victims = spared
    return victims


def free_memory(machine: Machine, held: Sequence[Slot]) -> int:
    """Return the bytes of the budget that nobody holds; negative when the machine has shrunk below what is held."""
    return machine.budget - sum(slot.memory for slot in held)


def free_accelerators(machine: Machine, held: Sequence[Slot]) -> float:
    """Return how much of the GPUs nobody holds, in number of GPUs."""
    return round(len(machine.gpus) - sum(slot.gpu_fraction for slot in held), 9)


def named(held: Sequence[Slot]) -> list[dict[str, Any]]:
    """Return who holds memory, the largest first."""
    fields = ("slot_id", "name", "memory", "priority", "status")
    return [{field: getattr(slot, field) for field in fields} for slot in _by_size(held)]


def _by_size(held: Sequence[Slot]) -> list[Slot]:
    return sorted(held, key=lambda slot: (-slot.memory, slot.slot_id))


def _worth(slot: Slot) -> tuple[bool, int, float]:
    return slot.status != "idle", slot.priority, slot.since


def _lacking(need: Need, machine: Machine, held: Sequence[Slot], victims: Sequence[Slot]) -> Lack | None:
    """Return what there is not enough of once the victims have made room."""
    kept = [slot for slot in held if slot not in victims]
    if need.gpu_fraction and need.gpu_fraction > free_accelerators(machine, kept) + _ROUNDING:
        return "accelerator"
    if need.memory and need.memory > free_memory(machine, kept):
        return "memory"
    if need.available is not None and need.memory > need.available + sum(slot.memory for slot in victims):
        return "system"
    return None


def _refusal(lack: Lack, need: Need, machine: Machine, held: Sequence[Slot]) -> InsufficientResources:
    details: dict[str, Any] = {"lacking": lack, "holders": named(held)}
    largest = _by_size(held)[:_NAMED]
    by = ", ".join(f"{slot.name} ({size(slot.memory)}, priority {slot.priority})" for slot in largest)
    held_by = f"held: {by}{' and others' if len(held) > _NAMED else ''}" if by else "nothing is held"
    match lack:
        case "accelerator" if not machine.gpus:
            return InsufficientResources(
                f"no GPU is known on {machine.node}, so none of one can be had; ask with gpu_fraction 0",
                reason="NO_ACCELERATOR",
                requested=need.gpu_fraction,
                available=0,
                missing=need.gpu_fraction,
                **details,
            )
        case "accelerator":
            free = max(0.0, free_accelerators(machine, held))
            return InsufficientResources(
                f"{need.gpu_fraction:g} of a GPU is asked for, {free:g} of {len(machine.gpus)} GPUs is free; {held_by}",
                reason="INSUFFICIENT_ACCELERATORS",
                requested=need.gpu_fraction,
                available=free,
                missing=round(need.gpu_fraction - free, 9),
                **details,
            )
        case "memory":
            room = max(0, free_memory(machine, held))
            said = f"{size(room)} of the budget of {size(machine.budget)} is free"
        case "system":
            room = need.available or 0
            said = f"the system has only {size(room)} available now, whatever the budget of {size(machine.budget)} says"
    missing = need.memory - room
    return InsufficientResources(
        f"{size(need.memory)} is asked for, {said}: {size(missing)} is missing; {held_by}",
        reason="INSUFFICIENT_MEMORY" if lack == "memory" else "SYSTEM_MEMORY_LOW",
        requested=need.memory,
        available=room,
        missing=missing,
        **details,
    )


def size(count: int) -> str:
    """Return bytes in words: `1.5 GiB`."""
    for unit, worth in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= worth:
            return f"{count / worth:.1f} {unit}"
    return f"{count} bytes"
