"""The rules of the resource domain: state, decide, evolve, reply. Pure: all numbers come from commands or events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import msgspec

from aima_core.call import Call
from aima_core.domain import World
from aima_core.errors import Conflict, NotFound
from aima_core.units import Event, Success, View
from services.resource import internal as i
from services.resource import units as u
from services.resource.rules.capacity import Machine, Need, Slot, room_for, size

State = Slot | Machine

THRESHOLDS: tuple[tuple[u.Pressure, float], ...] = (("low", 0), ("medium", 70), ("high", 85), ("critical", 95))
HYSTERESIS = 2.0  # percentage points below its threshold at which a level ends; a varying value causes fewer events


Prepared = i.DecideAllocation | u.Release | u.UpdateSlot
"""The commands of callers, after their preparation."""


def decide(world: World[State], command: Prepared | i.Commands, call: Call) -> list[Event]:
    """Return the events of a command. Empty if its goal is already reached.

    Raises InsufficientResources, Conflict if a slot of another size has the name, and NotFound if a slot to update does
    not exist.
    """
    match command:
        case i.DecideAllocation():
            return _allocate(world, command, call)
        case u.Release(slot_id=slot_id):
            return [u.Released(slot_id=slot_id)] if slot_at(world, slot_id) else []
        case u.UpdateSlot():
            return _update(world, command, call)
        case i.RecordCapacity(memory=memory, system_reserve=reserve, storage=storage):
            before = machine_at(world, call.node)
            after = msgspec.structs.replace(before, memory=memory, system_reserve=reserve, storage=storage)
            return _capacity(before, after)
        case i.RecordAccelerator(node=node, device_id=device_id, present=present) if node == call.node:
            before = machine_at(world, node)
            others = [gpu for gpu in before.gpus if gpu != device_id]
            gpus = tuple(sorted([*others, device_id] if present else others))
            return _capacity(before, msgspec.structs.replace(before, gpus=gpus))
        case i.RecordAccelerator():
            return []
        case i.RecordPressure(used_percent=used):
            return _pressure(machine_at(world, call.node), used)
        case _:
            assert_never(command)


def evolve(state: State | None, event: u.Events) -> State | None:
    """Return the slot or the machine after the event, or None for a released slot. Never raises."""
    slot = state if isinstance(state, Slot) else None
    match event:
        case u.CapacityChanged():
            return Machine(
                node=event.node,
                memory=event.memory,
                system_reserve=event.system_reserve,
                storage=event.storage,
                gpus=event.accelerator_ids,
                pressure=state.pressure if isinstance(state, Machine) else "low",
            )
        case u.PressureWarning():
            machine = state if isinstance(state, Machine) else Machine(node=event.node)
            return msgspec.structs.replace(machine, pressure=event.pressure)
        case u.Allocated():
            return Slot(
                slot_id=event.slot_id,
                name=event.name,
                asked=event.memory,
                memory=event.memory,
                gpu_fraction=event.gpu_fraction,
                priority=event.priority,
                since=event.at,
            )
        case u.SlotUpdated():
            return slot and msgspec.structs.replace(slot, memory=event.memory_limit, status=event.status)
        case u.Preempted():
            return slot and msgspec.structs.replace(slot, status="preempted")
        case u.Released():
            return None
        case _:
            assert_never(event)


def reply(world: World[State], command: Prepared, events: Sequence[Event]) -> View | None:  # noqa: ARG001 (the core's)
    """Return the answer of a command. Never None, because every command here is complete when it is decided."""
    match command:
        case i.DecideAllocation():
            return u.SlotRef(slot_id=command.slot_id)
        case u.Release() | u.UpdateSlot():
            return Success()
        case _:
            assert_never(command)


def slot_at(world: World[State], slot_id: str) -> Slot | None:
    """Return the slot, or None if no slot has this id."""
    state = world.get(f"resource/{slot_id}")
    return state if isinstance(state, Slot) else None


def machine_at(world: World[State], node: str) -> Machine:
    """Return the machine. Before its capacity is recorded, returns an empty machine."""
    state = world.get(f"resource/{node}")
    return state if isinstance(state, Machine) else Machine(node=node)


def held(world: World[State], *, but: str = "") -> list[Slot]:
    """Return the slots that count against the budget, except the slot with the id `but`."""
    return [s for s in world.values() if isinstance(s, Slot) and s.status != "preempted" and s.slot_id != but]


def pressure_of(used_percent: float, before: u.Pressure) -> u.Pressure:
    """Return the memory pressure. A level ends only when the usage is HYSTERESIS points below the level's threshold."""
    order = [level for level, _ in THRESHOLDS]
    now = _level(used_percent)
    if order.index(now) >= order.index(before):
        return now
    return min(before, _level(used_percent + HYSTERESIS), key=order.index)


def _level(used_percent: float) -> u.Pressure:
    return [level for level, threshold in THRESHOLDS if used_percent >= threshold][-1]


def _allocate(world: World[State], command: i.DecideAllocation, call: Call) -> list[Event]:
    slot = slot_at(world, command.slot_id)
    if slot is not None and slot.status != "preempted":
        if (slot.asked, slot.gpu_fraction) == (command.memory_bytes, command.gpu_fraction):
            return []
        raise Conflict(
            f"{slot.slot_id} already holds {size(slot.asked)} and {slot.gpu_fraction:g} of a GPU; "
            "release it first, or change its limit with resource.update_slot",
            reason="ALREADY_EXISTS",
            slot_id=slot.slot_id,
            memory=slot.asked,
            gpu_fraction=slot.gpu_fraction,
        )
    machine = machine_at(world, call.node)
    need = Need(command.memory_bytes, command.gpu_fraction, command.priority, command.available)
    allocated = u.Allocated(
        slot_id=command.slot_id,
        name=command.name,
        type=command.type,
        memory=command.memory_bytes,
        gpu_fraction=command.gpu_fraction,
        priority=command.priority,
        owner=call.principal or call.causation_id or "local",
        at=call.at,
    )
    preempted = [_preempted(victim, command) for victim in room_for(need, machine, held(world))]
    used_percent = 100 * max(0.0, 1 - command.available / machine.memory) if machine.memory else 0.0
    return [*preempted, allocated, *_pressure(machine, used_percent)]


def _preempted(victim: Slot, by: u.Allocate) -> u.Preempted:
    reason = f"{by.name} has priority {by.priority}, above {victim.priority}"
    return u.Preempted(slot_id=victim.slot_id, reason=reason, by_slot_id=by.slot_id)


def _update(world: World[State], command: u.UpdateSlot, call: Call) -> list[Event]:
    slot = slot_at(world, command.slot_id)
    if slot is None:
        raise NotFound(
            f"there is no slot {command.slot_id}; resource.allocations lists the slots",
            reason="SLOT_NOT_FOUND",
            slot_id=command.slot_id,
        )
    memory = slot.memory if command.memory_limit is None else command.memory_limit
    status = command.status or slot.status
    events: list[Event] = []
    resumed = slot.status == "preempted" != status
    if status != "preempted" and (resumed or memory > slot.memory):
        # checks only the budget, because the slot's owner may already use this memory; priority 0 preempts no slot
        need = Need(memory, slot.gpu_fraction, 0, None)
        room_for(need, machine_at(world, call.node), held(world, but=slot.slot_id))
    if status == "preempted" != slot.status:
        if memory != slot.memory:
            events.append(u.SlotUpdated(slot_id=slot.slot_id, memory_limit=memory, status=slot.status))
        events.append(u.Preempted(slot_id=slot.slot_id, reason="requested", by_slot_id=""))
    elif (memory, status) != (slot.memory, slot.status):
        events.append(u.SlotUpdated(slot_id=slot.slot_id, memory_limit=memory, status=status))
    return events


def _capacity(before: Machine, after: Machine) -> list[Event]:
    if before == after:
        return []
    return [
        u.CapacityChanged(
            node=after.node,
            memory=after.memory,
            system_reserve=after.system_reserve,
            storage=after.storage,
            accelerators=len(after.gpus),
            accelerator_ids=after.gpus,
        )
    ]


def _pressure(machine: Machine, used_percent: float) -> list[Event]:
    pressure = pressure_of(used_percent, machine.pressure)
    if pressure == machine.pressure:
        return []
    order = [level for level, _ in THRESHOLDS]
    # the last crossed threshold is the new level's lower end after a rise, and its upper end after a fall
    crossed = order.index(pressure) + (order.index(pressure) < order.index(machine.pressure))
    return [u.PressureWarning(node=machine.node, pressure=pressure, threshold=THRESHOLDS[crossed][1])]
