"""Looks at the services once a second: scales those that follow their load, puts idle ones to sleep, ends strays."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time

from aima_core.domain import Context
from aima_core.errors import AimaError
from aima_core.structured_logs import logger
from services.engine import units as engine
from services.inference import units as inference
from services.service import internal as i
from services.service.outside.memory import MemoryFinder, Need, last_used
from services.service.rules.scaling import Scaler, bounds_of, sleeps_after
from services.service.rules.state import Service

_LOOK = 1.0  # seconds between looks
_FULL = 30.0  # seconds for which a service that could not grow is left as it is
_STRAYS = 30  # looks between those at instances of services that are no more
_ASK = 2.0  # seconds for a question that a peer answers from memory


class Reconciler:
    """What was seen of each service's load, and what it asks for. Forgotten with the process: then it looks anew."""

    def __init__(self, context: Context[Service], room: MemoryFinder) -> None:
        self._context = context
        self._room = room
        self._scalers: dict[str, Scaler] = {}
        self._full_until: dict[str, float] = {}

    async def keep(self) -> None:
        """Look for as long as the process lives."""
        for look in itertools.count(1):
            await asyncio.sleep(_LOOK)
            if look % _STRAYS == 0:
                await self._end_strays()
            kept = [service for service in self._context.world.values() if _is_kept(service)]
            for gone in self._scalers.keys() - {service.id for service in kept}:
                del self._scalers[gone]
                self._full_until.pop(gone, None)
            if not kept:
                continue
            try:
                load = await self._context.peers.call(inference.GetLoad(), timeout=_ASK)
            except AimaError:
                continue  # nothing is known, so nothing changes
            seen = {found.service_id: found for found in load.services}
            for service in kept:
                await self._see_to(service, seen.get(service.id))

    async def _see_to(self, service: Service, load: inference.ServiceLoad | None) -> None:
        now, requests = time.time(), load.outstanding + load.queued if load else 0
        patience = sleeps_after(service.about)
        if patience and not requests and now - max(last_used(service, load), _started(service)) >= patience:
            await self._record(i.PutToSleep(service_id=service.id, reason=f"no request for {patience:g} s"))
        elif bounds := bounds_of(service.about):
            scaler = self._scalers.setdefault(service.id, Scaler(self._context.settings.calm))
            wanted = scaler.look(now, requests, service.wanted, bounds)
            if wanted != service.wanted:
                reason = f"{requests} requests, of which each replica shall have {bounds.target:g}"
                await self._scale(service, wanted, reason, now)

    async def _scale(self, service: Service, wanted: int, reason: str, now: float) -> None:
        """Scale as far as there is free memory: for load alone nobody has to make room."""
        if wanted > service.wanted and service.start:
            if now < self._full_until.get(service.id, 0.0):
                return
            need = Need(service.start.memory, service.start.gpu_fraction)
            try:
                fits = await self._room.fit(service, wanted - service.wanted, need)
            except AimaError:
                return  # nothing is known, so nothing changes
            if service.wanted + fits < wanted:
                self._full_until[service.id] = now + _FULL
                logger.warning("no room to scale", service_id=service.id, wanted=wanted, possible=service.wanted + fits)
                wanted = service.wanted + fits
        if wanted != service.wanted:
            await self._record(i.BeginScale(service_id=service.id, replicas=wanted, reason=reason, by_load=True))

    async def _end_strays(self) -> None:
        """End instances that run for services that are no more: one was started in the last moment of its service."""
        with contextlib.suppress(AimaError):
            engines = await self._context.peers.call(engine.ListEngines(limit=1000), timeout=_ASK)
            for instance in [instance for found in engines.items for instance in found.instances]:
                gone = f"service/{instance.service_id}" not in self._context.world
                if instance.service_id and gone and instance.status in ("starting", "running"):
                    logger.warning("ending a stray", process_id=instance.process_id)
                    await self._context.peers.call(engine.StopEngine(name=instance.process_id), timeout=_ASK)

    async def _record(self, command: i.PutToSleep | i.BeginScale) -> None:
        try:
            await self._context.record(command)
        except AimaError as error:
            logger.warning("not as the load asks", service_id=command.service_id, error=error.message)


def _is_kept(service: Service) -> bool:
    about = service.about
    return service.status in ("running", "degraded") and bool(sleeps_after(about) or bounds_of(about))


def _started(service: Service) -> float:
    """Return when the present start was asked for: what came up since may not have been used yet."""
    return service.start.deadline - service.start.timeout if service.start else 0.0
