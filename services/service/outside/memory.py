"""Whether there is memory for more replicas, and who makes room for them when there is none.

The services that have been idle longest do, if that is enough and they are no more important; services that are
persistent or have work never do. The resource domain has the last word on memory.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from aima_core.domain import Context
from aima_core.errors import AimaError, InsufficientResources
from services.inference import units as inference
from services.resource import units as resource
from services.service.rules.state import Service

_ASK = 2.0  # seconds for a question that a peer answers from memory
_RESIDENCE = 10.0  # seconds for which a service that was used keeps its memory from those that a request wakes
_REASONS = {"accelerator": "INSUFFICIENT_ACCELERATORS", "system": "SYSTEM_MEMORY_LOW"}  # by what is lacking
_MOST_FREED = 100  # slots that the resource domain takes into one question


class Need(NamedTuple):
    """What one replica takes: `memory` in bytes of main memory, and a part of one GPU."""

    memory: int
    gpu_fraction: float


class MemoryFinder:
    """Looks for room; changes nothing."""

    def __init__(self, context: Context[Service]) -> None:
        self._world = context.world
        self._peers = context.peers

    async def made(self, service: Service, replicas: int, need: Need, *, gently: bool = False) -> tuple[str, ...]:
        """Return the idle services that have to make room for so many replicas more, none when they fit as it is.

        With `gently` those that were just used stay, or two services that are asked for in turn would chase each other.
        Raises InsufficientResources that says what is missing and who holds it.
        """
        answer = await self._ask(service, replicas, need)
        if _is_free(answer):
            return ()
        slots = await self._slots_by_process()
        idle = {
            found.id: [slot for process in found.present() for slot in slots.get(process, ())]
            for found in await self._idle(service, _RESIDENCE if gently else 0.0)
        }
        going: list[str] = []
        for ident in [ident for ident, held in idle.items() if held]:
            going.append(ident)
            if await self._suffices(service, replicas, need, idle, going):
                return await self._spared(service, replicas, need, idle, going)
        if answer.can_allocate:  # by taking it from somebody less important, who is not idle
            return ()
        raise _insufficient(service, answer)

    async def fit(self, service: Service, replicas: int, need: Need) -> int:
        """Return how many of so many replicas there is free memory for, with nobody making room."""
        if _is_free(await self._ask(service, replicas, need)):
            return replicas
        fits, beyond = 0, replicas
        while beyond - fits > 1:
            count = (fits + beyond) // 2
            if _is_free(await self._ask(service, count, need)):
                fits = count
            else:
                beyond = count
        return fits

    async def _ask(
        self, service: Service, replicas: int, need: Need, freeing: Sequence[str] = ()
    ) -> resource.CanAllocate:
        question = resource.AskCanAllocate(
            memory_bytes=need.memory,
            gpu_fraction=need.gpu_fraction,
            count=replicas,
            priority=service.about.priority,
            freeing=list(freeing),
        )
        return await self._peers.call(question, timeout=_ASK)

    async def _suffices(
        self, service: Service, replicas: int, need: Need, held: Mapping[str, list[str]], going: Sequence[str]
    ) -> bool:
        freed = [slot for ident in going for slot in held[ident]]
        if len(freed) > _MOST_FREED:
            return False
        return _is_free(await self._ask(service, replicas, need, freed))

    async def _spared(
        self, service: Service, replicas: int, need: Need, held: Mapping[str, list[str]], going: Sequence[str]
    ) -> tuple[str, ...]:
        """Leave out those without whom it is enough: one that goes late may have more than all before it."""
        kept = list(going)
        for ident in going[:-1]:
            others = [other for other in kept if other != ident]
            if await self._suffices(service, replicas, need, held, others):
                kept = others
        return tuple(kept)

    async def _slots_by_process(self) -> dict[str, list[str]]:
        """Return the ids of the resource domain's slots by the process that holds them: it names one after each run."""
        held = await self._peers.call(resource.ListAllocations(limit=1000), timeout=_ASK)
        found: dict[str, list[str]] = {}
        for slot in held.allocations:
            found.setdefault(slot.name.rpartition("-")[0], []).append(slot.slot_id)
        return found

    async def _idle(self, needy: Service, residence: float) -> list[Service]:
        """Return the services without any request that are no more important, the first to go first.

        `residence`: seconds for which those that were used stay.
        """
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
        seen, now = {found.service_id: found for found in load.services}, time.time()
        used = {service.id: last_used(service, seen.get(service.id)) for service in candidates}
        idle = [
            service
            for service in candidates
            if ((found := seen.get(service.id)) is None or not (found.outstanding or found.queued))
            and used[service.id] + residence <= now
        ]
        return sorted(idle, key=lambda service: (service.about.priority, used[service.id]))


def _is_free(answer: resource.CanAllocate) -> bool:
    """Whether there is room without anybody making it."""
    return answer.can_allocate and not answer.would_preempt


def _insufficient(service: Service, answer: resource.CanAllocate) -> InsufficientResources:
    return InsufficientResources(
        f"{service.id}: {answer.reason}",
        reason=_REASONS.get(answer.lacking or "", "INSUFFICIENT_MEMORY"),
        requested=answer.requested,
        available=answer.available,
        missing=answer.missing,
        holders=[holder.model_dump() for holder in answer.holders],
    )


def last_used(service: Service, load: inference.ServiceLoad | None) -> float:
    """Return when the service last had a request, or else began to answer; Unix seconds."""
    began = max((member.answered_at for member in service.members), default=0.0)
    return max(began, (load.last_used if load else None) or 0.0)
