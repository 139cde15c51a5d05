"""The inference domain's I/O: sends requests to engines, grants leases and expires them, and answers queries.

`placement.py` finds the replica for each request.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, assert_never

from aima_core.call import Call, timestamp
from aima_core.domain import Commands, Context, Outside, Parts
from aima_core.errors import (
    AimaError,
    NotFound,
    Timeout,
)
from aima_core.store.records import Recorded
from aima_core.units import Command, View
from aima_engines.engine_client import EngineClient
from aima_engines.engine_http import EngineGone
from aima_engines.kinds.speech_kinds import voices as voices_of
from services.inference import internal as i
from services.inference import units as u
from services.inference.outside.engine_requests import CANCELLED, REQUEST_KINDS, EngineRequests, fields_of
from services.inference.outside.placement import Placement, PlacementRequest
from services.inference.rules import statistics
from services.inference.rules.decider import Prepared
from services.inference.rules.state import Pool, Route, Sweep, carried_here
from services.service import units as service

_SWEEP = 1.0  # seconds between checks for expired leases
_VOICES = 5.0  # seconds for an engine to list its voices
_CATCH_UP = 1.0  # seconds to wait for the service domain's latest events
_EARLY = 0.02  # seconds; a request times out this long before its deadline, because the core's timeout has no cause


class InferenceOutside(Outside[Pool]):
    """The I/O of the inference domain."""

    flows = (*u.REQUESTS, u.LeaseModel)

    def __init__(self, context: Context[Pool], client: Callable[[], EngineClient] = EngineClient) -> None:
        super().__init__(context)
        self._holder = secrets.token_hex(4)  # differs in each run of the process
        self._placement = Placement(context)
        self._requests = EngineRequests(context, self._placement, client())

    async def open(self) -> None:
        """Fail the requests that an earlier run of this process was sending. Their callers are gone."""
        for pool in list(self.context.world.values()):
            for request in pool.requests.values():
                if carried_here(request):
                    await self._expire(request, "the process that sent the request has ended", "INTERNAL_ERROR")

    async def close(self) -> None:
        await self._placement.close()
        self._requests.close()

    def background(self) -> Iterable[Callable[[], Coroutine[Any, Any, None]]]:
        return (self._placement.watch, self._placement.tick)

    async def prepare(self, command: u.Commands, call: Call) -> Prepared:
        """Return the first command of a flow, for its dry run. Raises NotFound for an unknown model."""
        match command:
            case u.Renew() | u.Settle():
                return command
            case _:
                request = self._placement_request(command, call)
                await self._placement.ensure_known(request.model, wait=False)
                return request.command()

    async def perform(self, effect: Any) -> Commands:
        """Fail the expired leases of a service, once a second."""
        if not isinstance(effect, Sweep):
            return await super().perform(effect)
        while True:
            pool = self.context.world.get(f"inference/{effect.service_id}")
            for request in list(pool.requests.values()) if pool else ():
                grace = _SWEEP if carried_here(request) else 0.0  # the request's own flow settles first
                if request.expires_at + grace <= time.time():
                    await self._expire(request, "the lease was not settled in time", "TIMEOUT")
            await asyncio.sleep(_SWEEP)

    async def flow(self, command: u.Requests | u.LeaseModel, call: Call, parts: Parts) -> View:
        """Grant a lease, or send a request to an engine. Both end by the deadline, even if the caller has left."""
        request = self._placement_request(command, call)
        if isinstance(command, u.LeaseModel) and command.probe:
            return await self._lease(request, command.avoid or "", parts)  # a probe waits only for its commit
        try:
            remaining = request.deadline - time.time()
            async with asyncio.timeout(remaining - min(_EARLY, remaining / 10)) as clock:
                if isinstance(command, u.LeaseModel):
                    return await self._lease(request, command.avoid or "", parts)
                return await self._requests.run(request, command, parts)
        except TimeoutError:
            if not clock.expired():
                raise
            seconds = round(request.deadline - call.at, 1)
            why = "the engine has not finished its answer" if request.placed else self._placement.obstacle(request)
            raise Timeout(f"{command.spec.name} timed out after {seconds:g} s: {why}") from None

    async def answer(self, query: u.Queries) -> View:
        match query:
            case u.ListServed(type=model_type):
                usage = await self.context.read.rows("SELECT * FROM usage")
                return statistics.models(self.context.world.values(), usage, model_type)
            case u.GetLoad(service_id=ident):
                return await self._load(ident)
            case u.GetMetrics(service_id=ident):
                return await self._metrics(ident)
            case u.GetSpeeds(model_id=ident):
                return statistics.speeds(await self.context.read.rows(statistics.SPEEDS, (ident,)))
            case u.ListVoices(model=name):
                return await self._voices(name)
            case _:
                assert_never(query)

    # --- a request ------------------------------------------------------------------------------------------

    def _placement_request(self, command: u.Requests | u.LeaseModel, call: Call) -> PlacementRequest:
        deadline = call.deadline or call.at + command.spec.timeout
        if isinstance(command, u.LeaseModel):
            types = tuple(command.type.split(",")) if command.type else ()
            return PlacementRequest(
                command.model,
                types,
                lambda: command.timeout,
                deadline,
                command.wait,
                command.holder or "",
                queue=command.queue,
                needs_tools=command.tools,
                probe=command.probe,
            )
        return PlacementRequest(
            command.model,
            REQUEST_KINDS[type(command)].types_for(fields_of(command)),
            lambda: max(deadline - time.time(), 0.001),
            deadline,
            getattr(command, "wait", True),
            self._holder,
            bool(getattr(command, "tools", None)),
        )

    async def _lease(self, request: PlacementRequest, avoid: str, parts: Parts) -> u.Lease:
        started, route = await self._placement.place(request, self._placement.admission.number(), parts, avoid=avoid)
        lease = u.Lease(
            request_id=started.request_id,
            endpoint=route.endpoint,
            model=route.served_model,
            dialect=route.dialect,
            expires_at=timestamp(started.expires_at),
            process_id=started.process_id,
            model_id=started.model,
            cancels_whole=route.cancels_whole,
        )
        if parts.requested:
            await self._hand_over(started, lease, parts)
        return lease

    async def _hand_over(self, started: u.RequestStarted, lease: u.Lease, parts: Parts) -> None:
        """Send a lease as a part before the answer; settle the lease if the caller has left.

        The flush waits until nats-server has reported whether the caller still listens. A caller that gets the lease
        must settle it, even if the caller leaves at this moment.
        """
        try:
            await parts.send({"lease": lease})
            await self._placement.finish(self.context.peers.client.nc.flush())  # `flush` can swallow a cancellation
        except BaseException:
            await self._placement.finish(self._requests.settle(started, **CANCELLED))
            raise

    async def _expire(self, request: u.RequestStarted, error: str, code: str) -> None:
        await self.context.record(
            i.RecordExpired(service_id=request.service_id, request_id=request.request_id, error=error, error_code=code)
        )

    # --- queries --------------------------------------------------------------------------------------------

    async def _catch_up(self) -> None:
        """Wait until the service domain's latest events are applied, but at most a second."""
        with contextlib.suppress(AimaError, TimeoutError):
            async with asyncio.timeout(_CATCH_UP):
                await self.context.caught_up("service")

    async def _load(self, ident: str | None) -> u.Load:
        await self._catch_up()  # the service domain queries the load of a replica right after replica_leaving
        now, admission = time.time(), self._placement.admission
        return u.Load(
            services=[
                statistics.load(pool, admission.queued(pool.service_id), now)
                for pool in self.context.world.values()
                if ident in (None, pool.service_id)
            ]
        )

    async def _metrics(self, ident: str) -> u.ServiceMetrics:
        if f"inference/{ident}" not in self.context.world:
            await self._catch_up()
        pool = self.context.world.get(f"inference/{ident}")
        if pool is None:
            raise NotFound(f"there is no service {ident}", reason="SERVICE_NOT_FOUND", service_id=ident)
        now, read = time.time(), self.context.read.rows
        rows = statistics.Rows(
            await read(statistics.USAGE, (ident,)),
            await read(statistics.RECENT, (ident, *statistics.last_minute(now))),
            await read(statistics.LATENCIES, (ident, *statistics.last_hour(now))),
        )
        return statistics.metrics(pool, rows, self._placement.admission.queued(ident))

    async def _voices(self, name: str | None) -> u.Voices:
        """Return the voices of text-to-speech services, from one replica each. `name` limits the services."""
        voices: dict[str, u.Voice] = {}
        for pool in self.context.world.values():
            route = next((route for route in pool.routes if route.healthy), None)
            if route and pool.type == "tts" and (name is None or pool.serves(name)):
                for ident, title, language in await self._voices_of(route):
                    voices[ident] = u.Voice(id=ident, name=title, language=language)
        return u.Voices(voices=list(voices.values()))

    async def _voices_of(self, route: Route) -> list[tuple[str, str, str]]:
        """Return a replica's voices; empty if its engine does not list them within 5 s."""
        with contextlib.suppress(AimaError, EngineGone, TimeoutError):
            async with asyncio.timeout(_VOICES):
                return await voices_of(self._requests.engine(route))
        return []


def react(recorded: Recorded) -> Sequence[Command[Any]]:
    """Return the commands that turn an event of the service domain into pools and routes. Pure."""
    match recorded.event:
        case service.ServiceCreated() as created:
            return [
                i.RecordService(
                    service_id=created.service_id,
                    service_name=created.name,
                    model_id=created.model_id,
                    model_name=created.model_name,
                    type=created.model_type,
                )
            ]
        case service.ReplicaStarted() as started:
            return [
                i.RecordRoute(
                    service_id=started.service_id,
                    service_name=started.service_name,
                    model_id=started.model_id,
                    model_name=started.model_name,
                    type=started.model_type,
                    process_id=started.process_id,
                    endpoint=started.endpoint,
                    served_model=started.served_model,
                    dialect=started.dialect,
                    tools=started.tools,
                    slots=started.slots,
                    engine=started.engine,
                    device=started.device,
                    cancels_whole=started.cancels_whole,
                )
            ]
        case service.ReplicaHealthChanged(service_id=ident, process_id=process_id, status=status):
            return [i.RecordHealth(service_id=ident, process_id=process_id, healthy=status == "healthy")]
        case (
            service.ReplicaLeaving(service_id=ident, process_id=process_id)
            | service.ReplicaFailed(service_id=ident, process_id=process_id)
            | service.ReplicaEnded(service_id=ident, process_id=process_id)
        ):
            return [i.RecordNoRoute(service_id=ident, process_id=process_id)]
        case service.StartRequested(service_id=ident):
            return [i.RecordPhase(service_id=ident, phase="starting")]
        case service.ServiceStarted(service_id=ident):
            return [i.RecordPhase(service_id=ident, phase="running")]
        case service.ServiceFailed(service_id=ident, error=error, error_code=code):
            return [i.RecordPhase(service_id=ident, phase="failed", error=error, error_code=code)]
        case (
            service.StopRequested(service_id=ident, asleep=asleep)
            | service.ServiceStopped(service_id=ident, asleep=asleep)
        ):
            return [i.RecordPhase(service_id=ident, phase="asleep" if asleep else "stopped")]
        case service.ServiceDeleted(service_id=ident):
            return [i.RecordRemoved(service_id=ident)]
        case _:
            return []
