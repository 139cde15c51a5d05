"""Wakes sleeping services: sends `service.start` to the service domain. Each service has at most one call at a time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable

import msgspec

from aima_core import call as calls
from aima_core.bus.peers import Peers
from aima_core.call import current_call
from aima_core.errors import AimaError, Conflict, InsufficientResources, Timeout, Unavailable
from aima_core.process.effects import end
from aima_core.structured_logs import logger
from services.inference.outside.admission import Admission
from services.inference.rules.routing import coming, hopeful
from services.inference.rules.state import Pool
from services.service import units as service

_START_TIMEOUT = 10.0  # seconds that the service domain has to accept or refuse a start; the start itself takes longer
_RETRY = 0.5  # seconds until the next try if the service is still stopping, or the service domain does not answer
_RETRY_MEMORY = 1.0  # seconds until the next try if there is no memory for the service
_EVENT_TIMEOUT = 5.0  # seconds to wait for the event of an accepted start
_REFUSAL_KEPT = 5.0  # seconds for which a refusal is stored
_FIRST_ANSWER = 1.0  # seconds that a request without `wait` waits for the reply to `service.start`


class Wakeups:
    """Wakes services and stores refusals for five seconds. `pool(service_id)` returns the state of a service."""

    def __init__(self, peers: Peers, node: str, admission: Admission, pool: Callable[[str], Pool | None]) -> None:
        self._peers = peers
        self._node = node
        self._admission = admission
        self._pool = pool
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._refusals: dict[str, tuple[float, AimaError]] = {}
        self._changed = asyncio.Event()

    def wake(self, service_id: str) -> None:
        """Start a service in the background, unless a task already wakes it."""
        if service_id not in self._tasks:
            self._forget_old_refusals()
            task = asyncio.create_task(self._wake(service_id), name=f"wake {service_id}")
            self._tasks[service_id] = task
            task.add_done_callback(lambda _: self._ended(service_id))

    def changed(self) -> None:
        """Let all tasks check again which services sleep, because states may have changed."""
        self._changed.set()
        self._changed = asyncio.Event()

    def refused_services(self) -> set[str]:
        """Return the services whose wake-up was refused in the last five seconds."""
        self._forget_old_refusals()
        return set(self._refusals)

    def refusal(self, pools: Iterable[Pool]) -> tuple[str, AimaError] | None:
        """Return the first sleeping service whose wake-up was refused in the last five seconds, and the refusal."""
        self._forget_old_refusals()
        asleep = [pool.service_id for pool in pools if pool.phase == "asleep"]
        return next(((ident, self._refusals[ident][1]) for ident in asleep if ident in self._refusals), None)

    async def answered(self, pools: Iterable[Pool]) -> None:
        """Wait until every wake-up of these services that has begun has a result, but at most one second."""
        waking = {pool.service_id for pool in pools} & self._tasks.keys()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_ANSWER):
                while any(self._asleep(ident) for ident in waking & self._tasks.keys() - self._refusals.keys()):
                    await self._changed.wait()

    async def close(self) -> None:
        await end(list(self._tasks.values()))

    async def _wake(self, service_id: str) -> None:
        # the call belongs to the first request, but has no deadline, because other requests may wait longer
        call = calls.fresh(self._node, parent=current_call.get())
        current_call.set(msgspec.structs.replace(call, deadline=None))
        start = service.StartService(service_id=service_id, wait=False, wake=True)
        while True:
            try:
                await self._peers.call(start, timeout=_START_TIMEOUT)
            except AimaError as refusal:
                no_memory = isinstance(refusal, InsufficientResources) and refusal.reason != "NO_GPU"
                if not (no_memory or _is_temporary(refusal)):
                    logger.warning("service not woken", service=service_id, error=refusal.message)
                    self._refuse(service_id, refusal)
                    return
                if no_memory:
                    self._refuse(service_id, refusal)
                if self._needed(service_id):
                    await asyncio.sleep(_RETRY_MEMORY if no_memory else _RETRY)
                if not self._needed(service_id):
                    return
            else:
                self._refusals.pop(service_id, None)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_EVENT_TIMEOUT):
                        while self._asleep(service_id):
                            await self._changed.wait()
                return

    def _refuse(self, service_id: str, refusal: AimaError) -> None:
        """Store a refusal. Unless only memory is missing, also fails the requests that no other service can take."""
        self._refusals[service_id] = (time.monotonic(), refusal)
        if not isinstance(refusal, InsufficientResources):
            self._admission.refuse(service_id, refusal, self._may_serve)
        self.changed()
        self._admission.wake()  # the remaining requests may wake the next sleeping service

    def _ended(self, service_id: str) -> None:
        del self._tasks[service_id]
        self.changed()

    def _forget_old_refusals(self) -> None:
        """Drop refusals that are older than five seconds, unless a task still tries to wake the service."""
        since = time.monotonic() - _REFUSAL_KEPT
        for ident in [ident for ident, (at, _) in self._refusals.items() if at <= since and ident not in self._tasks]:
            del self._refusals[ident]

    def _asleep(self, service_id: str) -> bool:
        pool = self._pool(service_id)
        return pool is not None and pool.phase == "asleep"

    def _needed(self, service_id: str) -> bool:
        """Whether this service sleeps and has waiting requests that no other service will take."""
        return self._asleep(service_id) and self._admission.needs(service_id, self._coming)

    def _coming(self, service_id: str) -> bool:
        pool = self._pool(service_id)
        return pool is not None and coming(pool)

    def _may_serve(self, service_id: str) -> bool:
        """Whether a service may still take queued requests: it runs, it starts, or it sleeps and was not refused."""
        pool, (_, refusal) = self._pool(service_id), self._refusals.get(service_id, (0.0, None))
        given_up = refusal is not None and not isinstance(refusal, InsufficientResources)
        return pool is not None and hopeful(pool) and not (given_up and pool.phase == "asleep")


def _is_temporary(refusal: AimaError) -> bool:
    """Whether another try may succeed: the service is still stopping, or the service domain does not answer."""
    return (isinstance(refusal, Conflict) and refusal.reason == "STOPPING") or type(refusal) in (Unavailable, Timeout)
