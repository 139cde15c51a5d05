"""Assembles the resource domain. Read this file first.

The domain records the memory of each slot. `units.py` is the contract. `rules/` is pure: `decider` decides the
commands, and `capacity` decides whether a need fits and which slots lose their memory. `outside/` reads the machine's
memory and follows peers.
"""

from __future__ import annotations

from aima_core.domain import Domain
from aima_core.units import Resource
from services.device.units import DeviceDetected, DeviceRemoved
from services.engine.units import EngineStopped
from services.resource import internal as i
from services.resource import units as u
from services.resource.outside import adapter
from services.resource.rules import decider, views
from services.resource.settings import ResourceSettings

RESOURCE: Domain[decider.State] = Domain(
    name="resource",
    about="Budgets of memory and accelerators, and the slots that engines and other programs reserve.",
    state=decider.State,  # type: ignore[arg-type]  # a union, which msgspec decodes by its tag
    events=u.EVENTS,
    commands=u.COMMANDS,
    internal=i.COMMANDS,
    queries=u.QUERIES,
    resources=(
        Resource(
            uri="asms://resource/status",
            about="Memory, storage, slots and pressure.",
            query=lambda _: u.GetStatus(),
            touched=lambda event: [event.stream],
        ),
        Resource(
            uri="asms://resource/budget",
            about="The memory that may be reserved, and the memory that is reserved.",
            query=lambda _: u.GetBudget(),
            touched=lambda event: [event.stream],
        ),
        Resource(
            uri="asms://resource/allocations",
            about="All slots, with the holder and the memory of each.",
            query=lambda _: u.ListAllocations(),
            touched=lambda event: [event.stream],
        ),
    ),
    decide=decider.decide,
    evolve=decider.evolve,
    reply=decider.reply,
    tables=views.TABLES,
    project=views.project,
    follows={"engine": (EngineStopped,), "device": (DeviceDetected, DeviceRemoved)},
    react=adapter.react,
    outside=adapter.ResourceOutside,
    settings=ResourceSettings,
)
