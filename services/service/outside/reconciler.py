"""Checks the services once a second. Scales services by load, puts idle services to sleep, and ends stray instances."""

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
from services.service.rules.views import start_requested_at

_INTERVAL = 1.0  # seconds between checks
_FULL = 30.0  # seconds until the next try to scale up a service for which there was too little memory
_STRAYS = 30  # checks between two searches for stray instances
_QUERY = 2.0  # seconds that a peer has to answer a query from memory


class Reconciler:
    """Follows the load of each service. Load samples are only in memory, so a new process starts without samples."""

    def __init__(self, context: Context[Service], memory: MemoryFinder) -> None:
        self._context = context
        self._memory = memory
        self._scalers: dict[str, Scaler] = {}
        self._full_until: dict[str, float] = {}

    async def run(self) -> None:
        """Check the services until cancelled."""
        for check in itertools.count(1):
            await asyncio.sleep(_INTERVAL)
            if check % _STRAYS == 0:
                await self._end_strays()
            watched = [service for service in self._context.world.values() if _is_watched(service)]
            for ident in self._scalers.keys() - {service.id for service in watched}:
                del self._scalers[ident]
                self._full_until.pop(ident, None)
            if not watched:
                continue
            try:
                services = (await self._context.peers.call(inference.GetLoad(), timeout=_QUERY)).services
            except AimaError:
                continue  # nothing changes if the load is unknown
            loads = {load.service_id: load for load in services}
            for service in watched:
                await self._adjust(service, loads.get(service.id))

    async def _adjust(self, service: Service, load: inference.ServiceLoad | None) -> None:
        now, requests = time.time(), load.outstanding + load.queued if load else 0
        patience = sleeps_after(service.about)
        # the idle time of a service counts from its start at the earliest
        if patience and not requests and now - max(last_used(service, load), start_requested_at(service)) >= patience:
            await self._record(i.PutToSleep(service_id=service.id, reason=f"no request for {patience:g} s"))
        elif bounds := bounds_of(service.about):
            scaler = self._scalers.setdefault(service.id, Scaler(self._context.settings.calm))
            replicas = scaler.sample(now, requests, service.desired_replicas, bounds)
            if replicas != service.desired_replicas:
                reason = f"{requests} requests; the target is {bounds.target:g} per replica"
                await self._scale(service, replicas, reason, now)

    async def _scale(self, service: Service, replicas: int, reason: str, now: float) -> None:
        """Scale a service as far as free memory allows. Does not put other services to sleep."""
        current = service.desired_replicas
        if replicas > current and service.start:
            if now < self._full_until.get(service.id, 0.0):
                return
            need = Need(service.start.memory, service.start.gpu_fraction)
            try:
                fits = await self._memory.fit(service, replicas - current, need)
            except AimaError:
                return  # nothing changes if the free memory is unknown
            if current + fits < replicas:
                self._full_until[service.id] = now + _FULL
                logger.warning(
                    "not enough memory to scale up", service_id=service.id, needed=replicas, possible=current + fits
                )
                replicas = current + fits
        if replicas != current:
            await self._record(i.BeginScale(service_id=service.id, replicas=replicas, reason=reason, by_load=True))

    async def _end_strays(self) -> None:
        """End stray instances. An instance is stray if its service was deleted, or was deleted and created again."""
        with contextlib.suppress(AimaError):
            engines = (await self._context.peers.list_all(engine.ListEngines(), timeout=_QUERY)).items
            for instance in [instance for item in engines for instance in item.instances]:
                if instance.service_id and instance.status in ("starting", "running") and self._is_stray(instance):
                    logger.warning("ending an instance that no service knows", process_id=instance.process_id)
                    await self._context.peers.call(engine.StopEngine(name=instance.process_id), timeout=_QUERY)

    def _is_stray(self, instance: engine.Instance) -> bool:
        """Whether the instance's service does not exist or does not know the instance.

        A service's log contains each of its instances before the instance starts.
        """
        service = self._context.world.get(f"service/{instance.service_id}")
        return service is None or instance.process_id not in service.present()

    async def _record(self, command: i.PutToSleep | i.BeginScale) -> None:
        try:
            await self._context.record(command)
        except AimaError as error:
            action = "put it to sleep" if isinstance(command, i.PutToSleep) else "scale it"
            logger.warning(f"could not {action}", service_id=command.service_id, error=error.message)


def _is_watched(service: Service) -> bool:
    about = service.about
    return service.status in ("running", "degraded") and bool(sleeps_after(about) or bounds_of(about))
