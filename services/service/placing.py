"""What deciding a start or a larger number of replicas needs to know: what they run on, and whether there is room.

When there is none, the services that have been idle longest make room, if that is enough and they are no more
important; services that are persistent or have work never do. The resource domain has the last word on memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import NamedTuple

from aima_core.domain import Context
from aima_core.errors import AimaError, Conflict, InsufficientResources
from services.device import units as device
from services.engine import units as engine
from services.inference import units as inference
from services.model import units as model
from services.resource import units as resource
from services.service import internal as i
from services.service.selection import Choice, Wish, choose
from services.service.state import Service

_ASK = 2.0  # seconds for a question that a peer answers from memory
_MOST_FREED = 100  # slots that the resource domain takes into one question
_LOOK = 0.1  # seconds between looks at services that are going to sleep


class _Idle(NamedTuple):
    """A service that could go to sleep; ordered by who goes first."""

    priority: int
    last_used: float
    service: Service


class Placing:
    """Looks things up; changes nothing."""

    def __init__(self, context: Context[Service]) -> None:
        self._world = context.world
        self._peers = context.peers

    async def start(self, service: Service, *, replicas: int, wait: bool, timeout: float) -> i.BeginStart:
        """Return the start of a service with all that is to be decided. Raises what speaks against it."""
        about, peers = service.about, self._peers
        found = await peers.call(model.GetModel(model_id=about.model_id))
        if found.status != "ready":
            raise Conflict(
                f"model {found.id} is {found.status}: {found.error or 'wait until it is ready'}",
                reason="MODEL_NOT_READY",
            )
        engines = await peers.call(engine.ListEngines(type=found.type, limit=1000))
        devices = await peers.call(device.ListDevices(limit=1000))
        wish = Wish(about.engine, about.device, about.resource_class, about.config, replicas)  # type: ignore[arg-type]
        choice = choose(found, engines.items, devices.items, wish, await self.speeds(found.id))
        return i.BeginStart(
            service_id=service.id,
            wait=wait,
            timeout=timeout,
            engine=choice.engine.name,
            device=choice.device,
            config=choice.config,
            reason=choice.reason,
            tools=found.tools and "tools" in choice.engine.capabilities,
            memory=choice.memory,
            gpu_fraction=choice.gpu_fraction,
            slots=await self._slots(choice),
            makes_room=await self.room(service, replicas, choice.memory, choice.gpu_fraction),
        )

    async def speeds(self, model_id: str) -> list[inference.Speed]:
        """Return what was measured of a model; nothing when nobody can tell."""
        try:
            return (await self._peers.call(inference.GetSpeeds(model_id=model_id), timeout=_ASK)).speeds
        except AimaError:
            return []

    async def room(self, service: Service, replicas: int, memory: int, gpu_fraction: float) -> tuple[str, ...]:
        """Return the idle services that have to make room for so many replicas more, none when they fit as it is.

        Raises InsufficientResources that says what is missing and who holds it.
        """
        priority = service.about.priority

        async def ask(freeing: Iterable[str]) -> resource.CanAllocate:
            question = resource.AskCanAllocate(
                memory_bytes=memory,
                gpu_fraction=gpu_fraction,
                count=replicas,
                priority=priority,
                freeing=list(freeing),
            )
            return await self._peers.call(question, timeout=_ASK)

        answer = await ask(())
        if answer.can_allocate and not answer.would_preempt:
            return ()
        going: list[str] = []
        freed: list[str] = []
        slots = await self._slots_by_process()
        for _, _, idle in await self._idle(service):
            going.append(idle.id)
            freed += [slot for process in idle.present() for slot in slots.get(process, ())]
            if len(freed) > _MOST_FREED:
                break
            better = await ask(freed)
            if better.can_allocate and not better.would_preempt:
                return tuple(going)
        if answer.can_allocate:  # by taking it from somebody less important, who is not idle
            return ()
        raise InsufficientResources(
            f"{service.id}: {answer.reason}",
            reason={"accelerator": "INSUFFICIENT_ACCELERATORS", "system": "SYSTEM_MEMORY_LOW"}.get(
                answer.lacking or "", "INSUFFICIENT_MEMORY"
            ),
            requested=answer.requested,
            available=answer.available,
            missing=answer.missing,
            holders=[holder.model_dump() for holder in answer.holders],
        )

    async def _slots(self, choice: Choice) -> int:
        """Return how many requests a replica works on at once."""
        if "slots" in choice.config:
            return int(choice.config["slots"])
        return (await self._peers.call(engine.GetFeatures(name=choice.engine.name), timeout=_ASK)).max_concurrent

    async def _slots_by_process(self) -> dict[str, list[str]]:
        """Return the ids of the resource domain's slots by the process that holds them: it names one after each run."""
        held = await self._peers.call(resource.ListAllocations(limit=1000), timeout=_ASK)
        found: dict[str, list[str]] = {}
        for slot in held.allocations:
            found.setdefault(slot.name.rpartition("-")[0], []).append(slot.slot_id)
        return found

    async def _idle(self, needy: Service) -> list[_Idle]:
        """Return the services without any request that are no more important, the first to go first."""
        candidates = [
            service
            for service in self._world.values()
            if service.status in ("running", "degraded")
            and service.id != needy.id
            and not service.about.persistent
            and service.about.priority <= needy.about.priority
        ]
        if not candidates:
            return []
        try:
            load = await self._peers.call(inference.GetLoad(), timeout=_ASK)
        except AimaError:  # who has work is not known, so nobody may be sent to sleep
            return []
        seen = {found.service_id: found for found in load.services}
        return sorted(
            (
                _Idle(service.about.priority, last_used(service, seen.get(service.id)), service)
                for service in candidates
                if (found := seen.get(service.id)) is None or not (found.outstanding or found.queued)
            ),
            key=lambda idle: idle[:2],
        )


def last_used(service: Service, load: inference.ServiceLoad | None) -> float:
    """Return when the service last had a request, or else began to answer; Unix seconds."""
    began = max((member.answered_at for member in service.members), default=0.0)
    return max(began, (load.last_used if load else None) or 0.0)


async def until_there_is_room(context: Context[Service], service_id: str) -> None:
    """Return when no service is on its way to sleep for this one any more."""
    while True:
        leaving = [service for service in context.world.values() if service.status == "stopping"]
        if not any(service.stop and service.stop.made_room_for == service_id for service in leaving):
            return
        await asyncio.sleep(_LOOK)
