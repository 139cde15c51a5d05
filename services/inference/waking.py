"""Wakes services that were put to sleep: asks the service domain to start them, each once at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import msgspec

from aima_core import call as calls
from aima_core.bus import Peers
from aima_core.call import current_call
from aima_core.effects import end
from aima_core.errors import AimaError, Conflict, Timeout, Unavailable
from aima_core.logs import logger
from services.inference.admission import Admission
from services.service import units as service

_ASK = 10.0  # seconds for the answer that it is decided; starting goes on after that
_AGAIN = 0.5  # seconds until it is asked again when it cannot be started right now, or nobody answers
_HEARD = 5.0  # seconds in which the news of a start should have come


class Waking:
    """Services that are being woken. `asleep` tells whether one still is, as far as we have heard."""

    def __init__(self, peers: Peers, node: str, admission: Admission, asleep: Callable[[str], bool]) -> None:
        self._peers = peers
        self._node = node
        self._admission = admission
        self._asleep = asleep
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()

    def wake(self, service_id: str) -> None:
        """Ask for a service, unless it is being asked for."""
        if service_id not in self._tasks:
            task = asyncio.create_task(self._wake(service_id), name=f"wake {service_id}")
            self._tasks[service_id] = task
            task.add_done_callback(lambda _: self._tasks.pop(service_id, None))

    def changed(self) -> None:
        """Look again which services are asleep."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def close(self) -> None:
        """Ask no more."""
        await end(list(self._tasks.values()))

    async def _wake(self, service_id: str) -> None:
        # on behalf of the request that came first, but not bound to its deadline: others may wait longer
        call = calls.fresh(self._node, parent=current_call.get())
        current_call.set(msgspec.structs.replace(call, deadline=None))
        while True:
            try:
                await self._peers.call(service.StartService(service_id=service_id, wait=False), timeout=_ASK)
            except AimaError as refusal:
                if not _passes(refusal):
                    logger.warning("service not woken", service=service_id, error=refusal.message)
                    self._admission.refuse(service_id, refusal)
                    return
                if not (self._admission.queued(service_id) and self._asleep(service_id)):
                    return
                await asyncio.sleep(_AGAIN)
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_HEARD):
                        while self._asleep(service_id):
                            await self._changed.wait()
                return


def _passes(refusal: AimaError) -> bool:
    """Whether asking again may help: it is still going to sleep, or somebody on the way to it does not answer."""
    return (isinstance(refusal, Conflict) and refusal.reason == "STOPPING") or type(refusal) in (Unavailable, Timeout)
