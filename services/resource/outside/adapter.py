"""The I/O of the resource domain: measures the machine and answers queries.

`react` turns events of peers into commands of the resource domain. The rules make all decisions.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, assert_never

from aima_core.call import Call
from aima_core.domain import Context, Outside
from aima_core.errors import AimaError
from aima_core.store.records import Recorded
from aima_core.units import Command, View
from services.device.units import DeviceDetected, DeviceRemoved
from services.engine.units import EngineStopped
from services.resource import internal as i
from services.resource import units as u
from services.resource.outside import machine
from services.resource.rules import views
from services.resource.rules.capacity import Facts
from services.resource.rules.decider import Prepared, State, held, machine_at, slot_at

_CATCH_UP = 1.0  # seconds to read the events that the engine domain has recorded
LEAST_RESERVE = 512 * 2**20  # minimum bytes to keep for the system; programs outside AIMA need memory


def react(recorded: Recorded) -> Iterable[Command[Any]]:
    """Return the commands for an event of a peer: release the slot of an ended instance, or record a GPU's change."""
    match recorded.event:
        case EngineStopped(process_id=process_id, run=run):
            yield u.Release(slot_id=u.slot_of(f"{process_id}-{run}"))
        case DeviceDetected(device=device) if device.type == "gpu":
            yield i.RecordAccelerator(node=device.node, device_id=device.id, present=True)
        case DeviceRemoved(device_id=device_id):
            yield i.RecordAccelerator(node=recorded.meta.node, device_id=device_id, present=False)


class ResourceOutside(Outside[State]):
    """Measures the machine and answers from the read tables."""

    def __init__(self, context: Context[State], read: Callable[[Path], Facts] = machine.read) -> None:
        """`read` returns the facts of the machine, and of the disk that contains the folder."""
        super().__init__(context)
        self._read = read

    async def open(self) -> None:
        """Record the machine's capacity before the first request needs it."""
        await self._measure()

    async def prepare(self, command: u.Commands, call: Call) -> Prepared:  # noqa: ARG002 (the core's)
        """Convert an `Allocate` to an internal command that also has the memory that the system has available."""
        match command:
            case u.Allocate():
                await self._catch_up()
                facts = await self._facts()
                return i.DecideAllocation(**command.model_dump(), available=facts.available)
            case u.Release() | u.UpdateSlot():
                return command
            case _:
                assert_never(command)

    async def answer(self, query: u.Queries) -> View:
        match query:
            case u.GetStatus():
                return views.status(await self._machine(), await self._slots(), await self._facts())
            case u.GetBudget():
                return views.budget(await self._machine(), await self._slots())
            case u.ListAllocations():
                where = {"slot_id": query.slot_id, "type": query.type}
                rows, total = await self.context.read.page(
                    "slots", where=where, limit=query.limit, offset=query.offset, order="since, slot_id"
                )
                return u.Allocations(allocations=[u.Slot(**row) for row in rows], total=total)
            case u.AskCanAllocate():
                return await self._can_allocate(query)
            case _:
                assert_never(query)

    def background(self) -> Iterable[Callable[[], Coroutine[Any, Any, None]]]:
        return (self._keep_measuring,)

    async def _catch_up(self) -> None:
        """Read which engine instances have ended, so their slots are released. Waits at most 1 s."""
        with contextlib.suppress(AimaError, TimeoutError):
            async with asyncio.timeout(_CATCH_UP):
                await self.context.caught_up("engine")

    async def _can_allocate(self, query: u.AskCanAllocate) -> u.CanAllocate:
        await self._catch_up()
        facts, world = await self._facts(), self.context.world
        leaving = [slot for slot_id in set(query.freeing) if (slot := slot_at(world, slot_id))]
        staying = [slot for slot in held(world) if slot not in leaving]
        return views.can_allocate(views.need_of(query, facts, leaving), machine_at(world, self.context.node), staying)

    async def _keep_measuring(self) -> None:
        while True:
            await asyncio.sleep(self.context.settings.interval)
            await self._measure()

    async def _measure(self) -> None:
        facts = await self._facts()
        reserve = machine.reserve(facts.memory, self.context.settings.reserve, LEAST_RESERVE)
        await self.context.record(i.RecordCapacity(memory=facts.memory, system_reserve=reserve, storage=facts.storage))
        await self.context.record(i.RecordPressure(used_percent=facts.used_percent))

    async def _facts(self) -> Facts:
        return await asyncio.to_thread(self._read, self.context.folder)  # a thread, because a network disk may be slow

    async def _machine(self) -> views.Row:
        return (await self.context.read.rows("SELECT * FROM machines WHERE node = ?", (self.context.node,)))[0]

    async def _slots(self) -> list[views.Row]:
        return await self.context.read.rows("SELECT * FROM slots ORDER BY since, slot_id")
