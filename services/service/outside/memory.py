"""Finds memory for more replicas. If too little memory is free, chooses idle services that have to go to sleep.

The service with the lowest priority goes to sleep first. Among services with equal priority, the one that was idle
longest goes first. A service stays awake if it is persistent, has requests, or has a higher priority than the service
that needs the memory. This module changes nothing: only the resource domain reserves memory.
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

_QUERY = 2.0  # seconds that a peer has to answer a query from memory
_RESIDENCE = 10.0  # seconds for which a used service stays awake, if a request wakes another service
_REASONS = {"accelerator": "INSUFFICIENT_ACCELERATORS", "system": "SYSTEM_MEMORY_LOW"}  # reasons by missing resource
_MOST_FREED = 100  # the most slots in one resource.can_allocate


class Need(NamedTuple):
    """The memory that one replica needs: `memory` in bytes of main memory, and `gpu_fraction` of one GPU."""

    memory: int
    gpu_fraction: float


class MemoryFinder:
    """Finds memory for replicas. Changes nothing."""

    def __init__(self, context: Context[Service]) -> None:
        self._world = context.world
        self._peers = context.peers

    async def make_room(self, service: Service, replicas: int, need: Need, *, gently: bool = False) -> tuple[str, ...]:
        """Return the idle services that have to go to sleep for these replicas. Empty if enough memory is free.

        With `gently`, services that were used in the last ten seconds stay awake, so two services that get requests in
        turn do not take each other's memory again and again. Raises InsufficientResources. The error says how much
        memory is missing and which slots hold memory.
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
        if answer.can_allocate:  # the resource domain preempts slots with lower priority, even if they are in use
            return ()
        raise _insufficient(service, replicas, answer)

    async def fit(self, service: Service, replicas: int, need: Need) -> int:
        """Return how many of the replicas fit into free memory without preemption, while all services stay awake."""
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
        """Return the services that must sleep. Omits a service if the others free enough memory without it."""
        kept = list(to_sleep)
        for ident in to_sleep[:-1]:
            others = [other for other in kept if other != ident]
            if await self._suffices(service, replicas, need, slots, others):
                kept = others
        return tuple(kept)

    async def _slots_by_process(self) -> dict[str, list[str]]:
        """Return the ids of the slots of each process, by process id. A slot has the name `<process_id>-<run>`."""
        allocations = (await self._peers.list_all(resource.ListAllocations(), timeout=_QUERY)).allocations
        slots: dict[str, list[str]] = {}
        for slot in allocations:
            slots.setdefault(slot.name.rpartition("-")[0], []).append(slot.slot_id)
        return slots

    async def _idle(self, needy: Service, residence: float) -> list[Service]:
        """Return the idle services with the same or a lower priority, in the order in which they go to sleep.

        A service stays awake for `residence` seconds after its last request.
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
        except AimaError:  # the requests of services are unknown, so no service may be put to sleep
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
    misfit = f"{replicas} replicas of {service.id} do" if replicas > 1 else f"1 replica of {service.id} does"
    return InsufficientResources(
        f"{misfit} not fit: {answer.reason}",
        reason=_REASONS.get(answer.lacking or "", "INSUFFICIENT_MEMORY"),
        requested=answer.requested,
        available=answer.available,
        missing=answer.missing,
        holders=[holder.model_dump() for holder in answer.holders],
    )


def last_used(service: Service, load: inference.ServiceLoad | None) -> float:
    """Return when the service was last used, in Unix seconds: its last request, or the last time a replica got ready.

    The later of the two counts.
    """
    answered_at = max((replica.answered_at for replica in service.replica_set), default=0.0)
    return max(answered_at, (load.last_used if load else None) or 0.0)
