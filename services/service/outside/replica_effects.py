"""Does what the state of a service calls for: asks for its replicas, ends them, watches over their deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from aima_core.domain import Commands, Context
from aima_core.errors import AimaError, NotFound, Timeout, Unavailable
from services.engine import units as engine
from services.inference import units as inference
from services.service import internal as i
from services.service.rules import state
from services.service.rules import todo as t

_STOP_TIMEOUT = 10.0  # seconds that an engine gets to end by itself
_ENDS = 5.0  # seconds in which most engines have ended; a domain that dies over it is asked again
_CATCH_UP = 5.0  # seconds that the engine domain gets to say what it knows
_ASK = 3.0  # seconds for a request that a peer answers at once; one that dies over it is asked again
_GLANCE = 1.0  # seconds for what only adds to an answer
_LOOK = 0.2  # seconds between looks at what others are about to finish
_AWAY = 3.0  # seconds that the inference domain may be away until nobody waits for requests that it would know


class ReplicaEffects:
    """Carries out the effects of services. Each may be called off at any moment, and is tried again when it fails."""

    def __init__(self, context: Context[state.Service]) -> None:
        self.context = context
        self._asking: dict[str, asyncio.Task[engine.Started]] = {}

    def close(self) -> None:
        """Ask no more."""
        for asking in self._asking.values():
            asking.cancel()

    async def perform(self, effect: Any) -> Commands:
        """Do one effect; return what came of it."""
        match effect:
            case t.RunReplica():
                return await self._run(effect)
            case t.EndReplica():
                return await self._end(effect)
            case t.Expire(service_id=ident, run=run, at=at, stopping=stopping):
                await self._until(at)
                return [i.RecordTimedOut(service_id=ident, run=run, stopping=stopping)]
            case t.ExpireReplica(service_id=ident, process_id=process_id, at=at):
                await self._until(at)
                return [_refused(ident, process_id, "the engine was not ready in time", "TIMEOUT")]
            case t.ReplaceSilent(service_id=ident, process_id=process_id, since=since):
                grace = self.context.settings.grace
                await self._until(since + grace)
                error = f"it has not answered its health check for more than {grace:g} s"
                return [_refused(ident, process_id, error, state.UNRESPONSIVE)]
        raise TypeError(effect)

    async def _until(self, at: float) -> None:
        """Return at that time, with all taken in that the engine domain had recorded by then.

        We may have been away, and all may have been well before; it may be starting just as we do.
        """
        await asyncio.sleep(max(at - time.time(), 0))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CATCH_UP):
                while True:
                    with contextlib.suppress(Unavailable, Timeout):
                        return await self.context.caught_up("engine")
                    await asyncio.sleep(_LOOK)

    async def _until_there_is_room(self, service_id: str) -> None:
        """Return when no service is on its way to sleep for this one any more."""
        while True:
            leaving = [service for service in self.context.world.values() if service.status == "stopping"]
            if not any(service.stop and service.stop.made_room_for == service_id for service in leaving):
                return
            await asyncio.sleep(_LOOK)

    async def _run(self, effect: t.RunReplica) -> Commands:
        """Ask for the instance under the id that is already in our log; a refusal becomes a fact of ours."""
        await asyncio.sleep(max(effect.not_before - time.time(), 0))
        await self._until_there_is_room(effect.service_id)
        service = self.context.world[f"service/{effect.service_id}"]
        start, about = service.start, service.about
        assert start
        asked = engine.StartEngine(
            name=start.engine,
            model_id=about.model_id,
            config=start.config,
            process_id=effect.process_id,
            service_id=service.id,
            port=about.port + effect.replica if about.port else None,
            memory_bytes=start.memory or None,
            gpu_fraction=start.gpu_fraction,
            priority=about.priority,
            wait=False,
            timeout=min(max(effect.deadline - time.time(), 1), 3600),
        )
        # not cut short by a stop: what is carried out after "it is gone" was recorded would be nobody's
        asking = asyncio.create_task(self.context.peers.call(asked, timeout=_ASK))
        self._asking[effect.process_id] = asking
        asking.add_done_callback(lambda task: self._answered(effect.process_id, task))
        try:
            await asyncio.shield(asking)  # asking twice for one process_id starts one
        except (Unavailable, Timeout):
            raise  # asked again until the deadline
        except AimaError as error:
            if error.reason == "BUSY":
                return []  # it was started, as we have asked before, and has failed: the news is on its way
            return [_refused(effect.service_id, effect.process_id, error.message, error.reason, ended=True)]
        return []

    def _answered(self, process_id: str, asking: asyncio.Task[engine.Started]) -> None:
        self._asking.pop(process_id, None)
        if not asking.cancelled():
            asking.exception()  # seen: whoever asked may have been called off

    async def _end(self, effect: t.EndReplica) -> Commands:
        if asking := self._asking.get(effect.process_id):
            await asyncio.wait((asking,))
        if effect.drain:
            await self._drained(effect.service_id, effect.process_id)
        asked = engine.StopEngine(name=effect.process_id, force=effect.force, timeout=_STOP_TIMEOUT)
        with contextlib.suppress(NotFound):  # the engine domain has never heard of it
            await self.context.peers.call(asked, timeout=_ENDS)  # asked again: it joins the stop that is under way
        await self.context.caught_up("engine")  # or its older news, coming late, would look like a stray
        return [i.RecordReplicaEnded(service_id=effect.service_id, process_id=effect.process_id)]

    async def _drained(self, ident: str, process_id: str) -> None:
        """Return when no request is under way on the process, or when it has had the time that it gets for them."""
        until, away = time.monotonic() + self.context.settings.drain, 0.0
        while time.monotonic() < until and away < _AWAY:
            begun = time.monotonic()
            try:
                load = await self.context.peers.call(inference.GetLoad(service_id=ident), timeout=_GLANCE)
            except NotFound:
                return  # nobody has routed anything to it
            except AimaError:
                await asyncio.sleep(_LOOK)
                away += time.monotonic() - begun
                continue
            away = 0.0
            replicas = [replica for service in load.services for replica in service.replicas]
            if not any(replica.process_id == process_id and replica.outstanding for replica in replicas):
                return
            await asyncio.sleep(_LOOK)


def _refused(ident: str, process_id: str, error: str, code: str, *, ended: bool = False) -> i.RecordReplicaFailed:
    return i.RecordReplicaFailed(service_id=ident, process_id=process_id, error=error, error_code=code, ended=ended)
