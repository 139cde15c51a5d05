"""Wakes services that were put to sleep: asks the service domain to start them, each once at a time."""

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

_ASK = 10.0  # seconds for the answer that it is decided; starting goes on after that
_AGAIN = 0.5  # seconds until it is asked again when it cannot be started right now, or nobody answers
_ROOM = 1.0  # seconds until it is asked again when there is no room for it
_HEARD = 5.0  # seconds in which the news of a start should have come
_LATELY = 5.0  # seconds for which a refusal is remembered
_GLANCE = 1.0  # seconds that an answer is waited for by those who do not want to wait


class Wakeups:
    """Services that are being woken. `pool` tells how one is, as far as we have heard."""

    def __init__(self, peers: Peers, node: str, admission: Admission, pool: Callable[[str], Pool | None]) -> None:
        self._peers = peers
        self._node = node
        self._admission = admission
        self._pool = pool
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._refusals: dict[str, tuple[float, AimaError]] = {}
        self._changed = asyncio.Event()

    def wake(self, service_id: str) -> None:
        """Ask for a service, unless it is being asked for."""
        if service_id not in self._tasks:
            self._forget()
            task = asyncio.create_task(self._wake(service_id), name=f"wake {service_id}")
            self._tasks[service_id] = task
            task.add_done_callback(lambda _: self._ended(service_id))

    def changed(self) -> None:
        """Look again which services are asleep."""
        self._changed.set()
        self._changed = asyncio.Event()

    def refused(self) -> set[str]:
        """Return the services that could not be woken a moment ago."""
        self._forget()
        return set(self._refusals)

    def refusal(self, pools: Iterable[Pool]) -> AimaError | None:
        """Return why none of these services could be woken a moment ago; None when nobody has refused to."""
        self._forget()
        asleep = [pool.service_id for pool in pools if pool.phase == "asleep"]
        return next((self._refusals[ident][1] for ident in asleep if ident in self._refusals), None)

    async def answered(self, pools: Iterable[Pool]) -> None:
        """Return when those that are being asked for have been answered once, or after a moment."""
        asked = {pool.service_id for pool in pools} & self._tasks.keys()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GLANCE):
                while any(self._asleep(ident) for ident in asked & self._tasks.keys() - self._refusals.keys()):
                    await self._changed.wait()

    async def close(self) -> None:
        """Ask no more."""
        await end(list(self._tasks.values()))

    async def _wake(self, service_id: str) -> None:
        # on behalf of the request that came first, but not bound to its deadline: others may wait longer
        call = calls.fresh(self._node, parent=current_call.get())
        current_call.set(msgspec.structs.replace(call, deadline=None))
        while True:
            try:
                await self._peers.call(service.StartService(service_id=service_id, wait=False, wake=True), timeout=_ASK)
            except AimaError as refusal:
                full = isinstance(refusal, InsufficientResources) and refusal.reason != "NO_GPU"
                if not (full or _passes(refusal)):
                    logger.warning("service not woken", service=service_id, error=refusal.message)
                    self._refused(service_id, refusal)
                    return
                if full:
                    self._refused(service_id, refusal)
                if self._wanted(service_id):
                    await asyncio.sleep(_ROOM if full else _AGAIN)
                if not self._wanted(service_id):
                    return
            else:
                self._refusals.pop(service_id, None)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_HEARD):
                        while self._asleep(service_id):
                            await self._changed.wait()
                return

    def _refused(self, service_id: str, refusal: AimaError) -> None:
        """Remember a refusal, and tell it those whom no other service can help, unless it may pass."""
        self._refusals[service_id] = (time.monotonic(), refusal)
        if not isinstance(refusal, InsufficientResources):
            self._admission.refuse(service_id, refusal, self._hopeful)
        self.changed()
        self._admission.wake()  # for the others the next one may be woken

    def _ended(self, service_id: str) -> None:
        del self._tasks[service_id]
        self.changed()

    def _forget(self) -> None:
        """Let go of what is no news any more; of one that is being asked for, the last answer is."""
        since = time.monotonic() - _LATELY
        for ident in [ident for ident, (at, _) in self._refusals.items() if at <= since and ident not in self._tasks]:
            del self._refusals[ident]

    def _asleep(self, service_id: str) -> bool:
        pool = self._pool(service_id)
        return pool is not None and pool.phase == "asleep"

    def _wanted(self, service_id: str) -> bool:
        return self._asleep(service_id) and self._admission.needs(service_id, self._coming)

    def _coming(self, service_id: str) -> bool:
        pool = self._pool(service_id)
        return pool is not None and coming(pool)

    def _hopeful(self, service_id: str) -> bool:
        """Whether a service may still take those who wait: as any other, or as soon as there is room for it."""
        pool, (_, refusal) = self._pool(service_id), self._refusals.get(service_id, (0.0, None))
        given_up = refusal is not None and not isinstance(refusal, InsufficientResources)
        return pool is not None and hopeful(pool) and not (given_up and pool.phase == "asleep")


def _passes(refusal: AimaError) -> bool:
    """Whether asking again may help: it is still going to sleep, or somebody on the way to it does not answer."""
    return (isinstance(refusal, Conflict) and refusal.reason == "STOPPING") or type(refusal) in (Unavailable, Timeout)
