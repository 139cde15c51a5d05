"""A resource domain: so much memory, and who holds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from aima_core.call import Call
from aima_core.domain import Domain, Outside, World
from aima_core.errors import InsufficientResources
from aima_core.store.records import Recorded
from aima_core.units import Command, Event, Query, Success, View
from services.engine import units as engine
from services.resource import units as resource


class Held(msgspec.Struct, frozen=True):
    """A slot."""

    name: str
    memory: int


def memory(budget: int) -> Domain[Held]:
    """Return a resource domain of so many bytes, which frees the slot of an engine that has ended."""

    def lacking(world: World[Held], asked: int, freeing: Sequence[str] = ()) -> int:
        kept = [held for held in world.values() if resource.slot_of(held.name) not in freeing]
        return asked + sum(held.memory for held in kept) - budget

    def decide(world: World[Held], command: Command[Any], _: Call) -> list[Event]:
        match command:
            case resource.Allocate(name=name, memory_bytes=asked):
                slot = resource.slot_of(name)
                if f"resource/{slot}" in world:
                    return []
                if (missing := lacking(world, asked)) > 0:
                    raise InsufficientResources(f"{missing} bytes are missing", reason="INSUFFICIENT_MEMORY")
                return [
                    resource.Allocated(
                        slot_id=slot,
                        name=name,
                        type=command.type,
                        memory=asked,
                        gpu_fraction=0,
                        priority=command.priority,
                        owner="test",
                    )
                ]
            case resource.Release(slot_id=slot):
                return [resource.Released(slot_id=slot)] if f"resource/{slot}" in world else []
            case resource.UpdateSlot():
                return []  # a stand-in of an engine uses more than all that there is here
        raise TypeError(command)

    def evolve(_: Held | None, event: Event) -> Held | None:
        return Held(event.name, event.memory) if isinstance(event, resource.Allocated) else None

    def reply(world: World[Held], command: Command[Any], events: Sequence[Event]) -> View:
        if isinstance(command, resource.Allocate):
            return resource.SlotRef(slot_id=resource.slot_of(command.name))
        return Success(success=True)

    def react(recorded: Recorded) -> list[Command[Any]]:
        event = recorded.event
        assert isinstance(event, engine.EngineStopped)
        return [resource.Release(slot_id=resource.slot_of(f"{event.process_id}-{event.run}"))]

    class Memory(Outside[Held]):
        async def answer(self, query: Query[Any]) -> View:
            held = {found.name: found.memory for found in self.context.world.values()}
            if isinstance(query, resource.GetBudget):
                used = sum(held.values())
                pool = resource.Pool(total=budget, reserved=used, available=budget - used)
                return resource.Budget(total=budget, reserved=used, pools={"memory": pool})
            if isinstance(query, resource.AskCanAllocate):
                asked = query.memory_bytes * query.count
                missing = lacking(self.context.world, asked, query.freeing)
                return resource.CanAllocate(
                    can_allocate=missing <= 0,
                    reason=f"{missing} bytes are missing" if missing > 0 else None,
                    requested=asked,
                    available=asked - missing,
                    missing=missing if missing > 0 else None,
                    lacking="memory" if missing > 0 else None,
                    holders=[],
                    would_preempt=[],
                )
            if isinstance(query, resource.ListAllocations):
                slots = [
                    resource.Slot(
                        slot_id=resource.slot_of(name),
                        name=name,
                        type="inference_native",
                        memory=size,
                        gpu_fraction=0,
                        priority=5,
                        status="active",
                        owner="test",
                        since="",
                    )
                    for name, size in held.items()
                ]
                return resource.Allocations(allocations=slots, total=len(slots))
            return Slots(slots=held)

    return Domain(
        name="resource",
        about="Memory.",
        state=Held,
        events=(resource.Allocated, resource.Released),
        commands=(resource.Allocate, resource.Release, resource.UpdateSlot),
        queries=(resource.GetBudget, resource.AskCanAllocate, resource.ListAllocations, GetSlots),
        decide=decide,
        evolve=evolve,
        reply=reply,
        follows={"engine": (engine.EngineStopped,)},
        react=react,
        outside=Memory,
    )


class Slots(View):
    """Bytes by slot."""

    slots: dict[str, int]


class GetSlots(Query[Slots], unit="resource.slots"):
    """Return who holds what."""
