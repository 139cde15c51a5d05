"""The read tables of the resource domain, and the views of their rows. Pure.

The transaction that appends events also updates the tables. Only `can_allocate` reads the states.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from aima_core.call import timestamp
from aima_core.errors import InsufficientResources
from aima_core.store.records import Recorded, Statement
from services.resource import units as u
from services.resource.rules.capacity import Facts, Machine, Need, Slot, free_memory, holders, room_for
from services.resource.rules.decider import pressure_of

TABLES = {
    "machines": """CREATE TABLE machines (node TEXT PRIMARY KEY, memory INTEGER NOT NULL,
        system_reserve INTEGER NOT NULL, storage INTEGER NOT NULL, accelerators INTEGER NOT NULL,
        pressure TEXT NOT NULL)""",
    "slots": """CREATE TABLE slots (slot_id TEXT PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL,
        memory INTEGER NOT NULL, gpu_fraction REAL NOT NULL, priority INTEGER NOT NULL, status TEXT NOT NULL,
        owner TEXT NOT NULL, since TEXT NOT NULL)""",
}
Row = dict[str, Any]


def project(recorded: Recorded) -> Iterable[Statement]:
    """Yield the SQL statements for an event."""
    event = recorded.event
    match event:
        case u.CapacityChanged():
            yield (
                "INSERT INTO machines VALUES (?,?,?,?,?,'low') ON CONFLICT (node) DO UPDATE SET memory = "
                "excluded.memory, system_reserve = excluded.system_reserve, storage = excluded.storage, "
                "accelerators = excluded.accelerators",
                (event.node, event.memory, event.system_reserve, event.storage, event.accelerators),
            )
        case u.PressureWarning():
            yield (
                "INSERT INTO machines VALUES (?,0,0,0,0,?) ON CONFLICT (node) DO UPDATE SET pressure = "
                "excluded.pressure",
                (event.node, event.pressure),
            )
        case u.Allocated():
            yield (
                "INSERT OR REPLACE INTO slots VALUES (?,?,?,?,?,?,'active',?,?)",
                (
                    event.slot_id,
                    event.name,
                    event.type,
                    event.memory,
                    event.gpu_fraction,
                    event.priority,
                    event.owner,
                    timestamp(recorded.recorded_at),
                ),
            )
        case u.SlotUpdated():
            yield (
                "UPDATE slots SET memory = ?, status = ? WHERE slot_id = ?",
                (event.memory_limit, event.status, event.slot_id),
            )
        case u.Preempted():
            yield "UPDATE slots SET status = 'preempted' WHERE slot_id = ?", (event.slot_id,)
        case u.Released():
            yield "DELETE FROM slots WHERE slot_id = ?", (event.slot_id,)


def status(machine: Row, slots: Sequence[Row], facts: Facts) -> u.Status:
    """Return the status: memory, disk, slots and pressure."""
    return u.Status(
        memory=u.MemoryView(
            total=facts.memory,
            used=facts.memory - facts.available,
            available=facts.available,
            reserved=_reserved(slots, "memory"),
            budget=_budget(machine),
        ),
        storage=u.StorageView(
            total=facts.storage, used=facts.storage - facts.storage_available, available=facts.storage_available
        ),
        slots=[u.Slot(**row) for row in slots],
        pressure=pressure_of(facts.used_percent, machine["pressure"]),
    )


def budget(machine: Row, slots: Sequence[Row]) -> u.Budget:
    """Return the budget and its reserved part."""
    total, reserved = _budget(machine), _reserved(slots, "memory")
    pools = {"memory": u.Pool(total=total, reserved=reserved, available=max(0, total - reserved))}
    if gpus := machine["accelerators"]:
        on_gpus = round(_reserved(slots, "gpu_fraction"), 9)
        pools["accelerator"] = u.Pool(total=gpus, reserved=on_gpus, available=max(0.0, round(gpus - on_gpus, 9)))
    return u.Budget(total=total, reserved=reserved, pools=pools)


def need_of(query: u.AskCanAllocate, facts: Facts, leaving: Sequence[Slot]) -> Need:
    """Return the need of all reservations together. The memory of the leaving slots counts as available.

    `available` is an upper bound, because weights that are mapped from a file count twice: in their slot, and as
    available memory. So a later allocation may still be refused with SYSTEM_MEMORY_LOW.
    """
    return Need(
        memory=query.count * query.memory_bytes,
        gpu_fraction=query.count * query.gpu_fraction,
        priority=query.priority,
        available=min(facts.memory, facts.available + sum(slot.memory for slot in leaving)),
    )


def can_allocate(need: Need, machine: Machine, held: Sequence[Slot]) -> u.CanAllocate:
    """Return whether the need fits, which slots would lose their memory for it, and otherwise what is missing."""
    details: dict[str, Any] = {}
    reason, victims = None, list[Slot]()
    try:
        victims = room_for(need, machine, held)
    except InsufficientResources as error:
        reason, details = error.message, error.details
    lacking: u.Lack | None = details.get("lacking")
    in_bytes = lacking in ("memory", "system")
    free = max(0, free_memory(machine, held))
    return u.CanAllocate(
        can_allocate=lacking is None,
        reason=reason,
        requested=need.memory,
        available=details["available"] if in_bytes else free if need.available is None else min(free, need.available),
        missing=details["missing"] if in_bytes else None,
        lacking=lacking,
        holders=[u.Holder(**holder) for holder in holders(held)],
        would_preempt=[slot.slot_id for slot in victims],
    )


def _budget(machine: Row) -> int:
    return max(0, int(machine["memory"] - machine["system_reserve"]))


def _reserved(slots: Sequence[Row], column: str) -> Any:
    return sum(row[column] for row in slots if row["status"] != "preempted")
