"""Finds memory for more replicas: checks whether it is free, and if not, which idle services have to go to sleep.

Services of no higher priority make room, those that have been idle longest first. Services that are persistent or have
requests never do. The resource domain alone reserves memory; nothing is changed here.
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

_QUERY = 2.0  # seconds for a query that a peer answers from memory
_RESIDENCE = 10.0  # seconds after its last request during which a service keeps its memory when a request wakes another
_REASONS = {"accelerator": "INSUFFICIENT_ACCELERATORS", "system": "SYSTEM_MEMORY_LOW"}  # by `lacking`
_MOST_FREED = 100  # slots that one resource.can_allocate takes


class Need(NamedTuple):
    """The need of one replica: `memory` in bytes of main memory, `gpu_fraction` of one GPU."""

    memory: int
    gpu_fraction: float


class MemoryFinder:
    """Looks for memory; changes nothing."""

    def __init__(self, context: Context[Service]) -> None:
        self._world = context.world
        self._peers = context.peers

    async def make_room(self, service: Service, replicas: int, need: Need, *, gently: bool = False) -> tuple[str, ...]:
        """Return the idle services that have to go to sleep for this many more replicas; none if there is free memory.

        With `gently`, services that were just used stay; otherwise two services that get requests in turn would keep
        taking each other's memory. Raises InsufficientResources with what is missing and who holds it.
        """
        answer = await self._can_allocate(service, replicas, need)
        if _is_free(answer):
            return ()
        slots = await self._slots_by_process()
        slots_of_idle = {
            idle.id: [slot for process in idle.present() for slot in slots.get(process, ())]
            for idle in await self._idle(service, _RESIDENCE if gently else 0.0)
        }
        to_sleep: list[str] = []
        for ident in [ident for ident, held in slots_of_idle.items() if held]:
            to_sleep.append(ident)
            if await self._suffices(service, replicas, need, slots_of_idle, to_sleep):
                return await self._without_needless(service, replicas, need, slots_of_idle, to_sleep)
        if answer.can_allocate:  # the resource domain preempts slots of lower priority that are in use
            return ()
        raise _insufficient(service, replicas, answer)

    async def fit(self, service: Service, replicas: int, need: Need) -> int:
        """Return how many of the replicas fit into free memory, without preemption or putting a service to sleep."""
        if _is_free(await self._can_allocate(service, replicas, need)):
            return replicas
        fits, beyond = 0, replicas
        while beyond - fits > 1:
            count = (fits + beyond) // 2
            if _is_free(await self._can_allocate(service, count, need)):
                fits = count
            else:
                beyond = count
        return fits

    async def _can_allocate(
        self, service: Service, replicas: int, need: Need, freeing: Sequence[str] = ()
    ) -> resource.CanAllocate:
        query = resource.AskCanAllocate(
            memory_bytes=need.memory,
            gpu_fraction=need.gpu_fraction,
            count=replicas,
            priority=service.about.priority,
            freeing=list(freeing),
        )
        return await self._peers.call(query, timeout=_QUERY)

    async def _suffices(
        self, service: Service, replicas: int, need: Need, slots: Mapping[str, list[str]], to_sleep: Sequence[str]
    ) -> bool:
        freed = [slot for ident in to_sleep for slot in slots[ident]]
        if len(freed) > _MOST_FREED:
            return False
        return _is_free(await self._can_allocate(service, replicas, need, freed))

    async def _without_needless(
        self, service: Service, replicas: int, need: Need, slots: Mapping[str, list[str]], to_sleep: Sequence[str]
    ) -> tuple[str, ...]:
        """Remove services that need not sleep: the last one may hold enough memory without the earlier ones."""
        kept = list(to_sleep)
        for ident in to_sleep[:-1]:
            others = [other for other in kept if other != ident]
            if await self._suffices(service, replicas, need, slots, others):
                kept = others
        return tuple(kept)

    async def _slots_by_process(self) -> dict[str, list[str]]:
        """Return the slot ids by the process that holds them; a slot is named `<process_id>-<run>`."""
        allocations = (await self._peers.call(resource.ListAllocations(limit=1000), timeout=_QUERY)).allocations
        slots: dict[str, list[str]] = {}
        for slot in allocations:
            slots.setdefault(slot.name.rpartition("-")[0], []).append(slot.slot_id)
        return slots

    async def _idle(self, needy: Service, residence: float) -> list[Service]:
        """Return the services without requests and of no higher priority, those to go to sleep first at the start.

        `residence`: seconds since its last request during which a service stays.
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
            services = (await self._peers.call(inference.GetLoad(), timeout=_QUERY)).services
        except AimaError:  # any service may have requests, so none may be put to sleep
            return []
        loads, now = {load.service_id: load for load in services}, time.time()
        used = {service.id: last_used(service, loads.get(service.id)) for service in candidates}
        idle = [
            service
            for service in candidates
            if ((load := loads.get(service.id)) is None or not (load.outstanding or load.queued))
            and used[service.id] + residence <= now
        ]
        return sorted(idle, key=lambda service: (service.about.priority, used[service.id]))


def _is_free(answer: resource.CanAllocate) -> bool:
    """Return whether the reservation fits without preempting any slot."""
    return answer.can_allocate and not answer.would_preempt


def _insufficient(service: Service, replicas: int, answer: resource.CanAllocate) -> InsufficientResources:
    count = f"{replicas} replica{'s' if replicas > 1 else ''}"
    return InsufficientResources(
        f"there is no room for {count} of {service.id}: {answer.reason}",
        reason=_REASONS.get(answer.lacking or "", "INSUFFICIENT_MEMORY"),
        requested=answer.requested,
        available=answer.available,
        missing=answer.missing,
        holders=[holder.model_dump() for holder in answer.holders],
    )


def last_used(service: Service, load: inference.ServiceLoad | None) -> float:
    """Return when the service last had a request or a replica of it came up, whichever is later; Unix seconds."""
    answered_at = max((replica.answered_at for replica in service.replica_set), default=0.0)
    return max(answered_at, (load.last_used if load else None) or 0.0)
