"""Carries out the effects of services: starts replicas, ends replicas, and watches deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from aima_core.domain import Commands, Context
from aima_core.errors import AimaError, NotFound, Timeout, Unavailable, is_silence
from services.engine import units as engine
from services.inference import units as inference
from services.service import internal as i
from services.service.rules import state
from services.service.rules import todo as t

_STOP_TIMEOUT = 10.0  # seconds that an engine has to end by itself before it is killed
_STOP_REPLY = 5.0  # seconds to wait for the reply to engine.stop; then the stop is sent again
_CATCH_UP = 5.0  # seconds to read the events that the engine domain has recorded
_START_REPLY = 3.0  # seconds to wait for the reply to engine.start; then the start is sent again
_LOAD_REPLY = 1.0  # seconds to wait for the reply to inference.load
_POLL = 0.2  # seconds between two checks whether another service sleeps or a replica is drained
_POLL_BUSY = 0.5  # seconds between two checks whether a silent replica still works on a request
_LOAD_UNKNOWN = 30.0  # seconds without an answer of the inference domain until a silent replica counts as idle
_INFERENCE_DOWN = 3.0  # seconds without an answer of the inference domain until a drain no longer waits for requests


class ReplicaEffects:
    """Carries out effects. An effect may be cancelled at any moment. A failed effect is tried again."""

    def __init__(self, context: Context[state.Service]) -> None:
        self.context = context
        self._starts: dict[str, asyncio.Task[engine.Started]] = {}  # engine.start requests under way, by process id

    def close(self) -> None:
        """Cancel the requests that are under way."""
        for start in self._starts.values():
            start.cancel()

    async def perform(self, effect: Any) -> Commands:
        """Carry out one effect. Returns the commands that record its result."""
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
                return [_failed(ident, process_id, "the engine was not ready by its deadline", "TIMEOUT")]
            case t.ReplaceSilent(service_id=ident, process_id=process_id, since=since):
                await self._until_silent_and_idle(ident, process_id, since)
                error = f"no reply to its health check for more than {self.context.settings.grace:g} s"
                return [_failed(ident, process_id, error, state.UNRESPONSIVE)]
        raise TypeError(effect)

    async def _until(self, at: float) -> None:
        """Wait until `at` (Unix seconds), then read all events that the engine domain has recorded so far.

        Without these events, a deadline would fail a replica that became ready while this process was down. The engine
        domain may be starting at the same moment, so it gets _CATCH_UP seconds to answer.
        """
        await asyncio.sleep(max(at - time.time(), 0))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CATCH_UP):
                while True:
                    with contextlib.suppress(Unavailable, Timeout):
                        return await self.context.caught_up("engine")
                    await asyncio.sleep(_POLL)

    async def _until_silent_and_idle(self, ident: str, process_id: str, since: float) -> None:
        """Wait until a silent replica has worked on no request for `service.grace` seconds. `since`: in Unix seconds.

        Some engines do not answer their health check while they work. Such an engine is busy until the deadline of its
        request. It then has the grace period to answer its health check.
        """
        until = since + self.context.settings.grace
        while (busy := await self._is_busy(ident, process_id)) or time.time() < until:
            if busy:
                until = time.time() + self.context.settings.grace
            await asyncio.sleep(_POLL_BUSY)
        await self._until(until)

    async def _is_busy(self, ident: str, process_id: str) -> bool:
        """Whether a replica works on a request whose deadline has not passed.

        While the inference domain does not answer, this is unknown, so the method waits for it. It gives up after
        _LOAD_UNKNOWN seconds.
        """
        until = time.monotonic() + _LOAD_UNKNOWN
        while time.monotonic() < until:
            try:
                load = await self.context.peers.call(inference.GetLoad(service_id=ident), timeout=_LOAD_REPLY)
            except NotFound:
                return False  # no request was ever routed to the service
            except AimaError:
                await asyncio.sleep(_POLL)
                continue
            replicas = [replica for service in load.services for replica in service.replicas]
            return any(
                replica.process_id == process_id and (replica.busy_until or 0.0) > time.time() for replica in replicas
            )
        return False

    async def _until_room_is_made(self, service_id: str) -> None:
        """Wait until all services that have to sleep for this service are asleep."""
        while True:
            stopping = [service for service in self.context.world.values() if service.status == "stopping"]
            if not any(service.stop and service.stop.made_room_for == service_id for service in stopping):
                return
            await asyncio.sleep(_POLL)

    async def _run(self, effect: t.RunReplica) -> Commands:
        """Request an engine instance with the replica's process id. Records a refusal as a failure of the replica."""
        await asyncio.sleep(max(effect.not_before - time.time(), 0))
        await self._until_room_is_made(effect.service_id)
        service = self.context.world[f"service/{effect.service_id}"]
        start, about = service.start, service.about
        assert start
        command = engine.StartEngine(
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
        # a stop does not cancel this request: _end waits for it, so no instance starts after its end was recorded
        request = asyncio.create_task(self.context.peers.call(command, timeout=_START_REPLY))
        self._starts[effect.process_id] = request
        request.add_done_callback(lambda task: self._start_done(effect.process_id, task))
        try:
            await asyncio.shield(request)  # idempotent: a second request starts no second instance of the process id
        except AimaError as error:
            if is_silence(error):
                raise  # the effect is tried again, until the replica's deadline
            if error.reason == "BUSY":
                return []  # the instance of an earlier request failed; the event of the failure follows
            return [_failed(effect.service_id, effect.process_id, error.message, error.reason, ended=True)]
        return []

    def _start_done(self, process_id: str, request: asyncio.Task[engine.Started]) -> None:
        self._starts.pop(process_id, None)
        if not request.cancelled():
            request.exception()  # marks the exception as retrieved, because the effect that awaits it may be cancelled

    async def _end(self, effect: t.EndReplica) -> Commands:
        if start := self._starts.get(effect.process_id):
            await asyncio.wait((start,))
        if effect.drain:
            await self._until_drained(effect.service_id, effect.process_id)
        command = engine.StopEngine(name=effect.process_id, force=effect.force, timeout=_STOP_TIMEOUT)
        with contextlib.suppress(NotFound):  # the engine domain never started the instance
            await self.context.peers.call(command, timeout=_STOP_REPLY)  # a repeat joins the stop under way
        await self.context.caught_up("engine")  # an event that is read after the end would look like a stray process
        return [i.RecordReplicaEnded(service_id=effect.service_id, process_id=effect.process_id)]

    async def _until_drained(self, ident: str, process_id: str) -> None:
        """Wait until no request is under way on the process. Waits at most `service.drain` seconds."""
        until, unanswered = time.monotonic() + self.context.settings.drain, 0.0
        while time.monotonic() < until and unanswered < _INFERENCE_DOWN:
            asked_at = time.monotonic()
            try:
                load = await self.context.peers.call(inference.GetLoad(service_id=ident), timeout=_LOAD_REPLY)
            except NotFound:
                return  # no request was ever routed to the service
            except AimaError:
                await asyncio.sleep(_POLL)
                unanswered += time.monotonic() - asked_at
                continue
            unanswered = 0.0
            replicas = [replica for service in load.services for replica in service.replicas]
            if not any(replica.process_id == process_id and replica.outstanding for replica in replicas):
                return
            await asyncio.sleep(_POLL)


def _failed(ident: str, process_id: str, error: str, code: str, *, ended: bool = False) -> i.RecordReplicaFailed:
    return i.RecordReplicaFailed(service_id=ident, process_id=process_id, error=error, error_code=code, ended=ended)
