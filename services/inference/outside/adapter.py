"""Everything of the inference domain that awaits: carrying requests to engines, and looking after leases.

`placement.py` gets each request its replica.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

import httpx2

from aima_core.call import Call, timestamp
from aima_core.domain import Commands, Context, Outside, Parts
from aima_core.errors import (
    AimaError,
    ExecutionFailed,
    NotFound,
    Timeout,
    Unavailable,
    ValidationFailed,
)
from aima_core.store.records import Recorded
from aima_core.units import Command, Query, View
from services.inference import internal as i
from services.inference import units as u
from services.inference.outside import openai_dialect
from services.inference.outside.placement import Placement, PlacementRequest
from services.inference.outside.request_kinds import TASKS, RequestKind, Send
from services.inference.rules import statistics
from services.inference.rules.state import Pool, Route, Sweep, carried_here
from services.service import units as service

_LOOK = 1.0  # seconds between looks for leases that have expired
_HEAR = 1.0  # seconds that the service domain gets to say what it knows
_TRIES = 3  # of a request, as long as no replica has answered anything
_EARLY = 0.02  # seconds before its deadline at which a request ends: the core, at the deadline, knows less of why
# Seconds without a word for which an engine is blamed; less than that was the caller's impatience. Who does not
# watch an answer come gives it more time.
_SILENT, _SILENT_WHOLE = 5.0, 60.0


class InferenceOutside(Outside[Pool]):
    """The inference domain's side of the world."""

    flows = (*TASKS, u.LeaseModel)

    def __init__(self, context: Context[Pool], http: Callable[[], httpx2.AsyncClient] = openai_dialect.client) -> None:
        super().__init__(context)
        self._http = http()
        self._holder = secrets.token_hex(4)  # another one in each life of the process
        self._placing = Placement(context)

    async def open(self) -> None:
        """Fail what an earlier life of this process was carrying: nobody is left to answer it."""
        for pool in list(self.context.world.values()):
            for request in pool.requests.values():
                if carried_here(request):
                    await self._expired(request, "the process that carried the request has ended", "INTERNAL_ERROR")

    async def close(self) -> None:
        """Let go of the connections."""
        await self._placing.close()
        await self._http.aclose()

    def background(self) -> Iterable[Callable[[], Coroutine[Any, Any, None]]]:
        """Keep waking those who wait."""
        return (self._placing.watch, self._placing.tick)

    async def prepare(self, command: Command[Any], call: Call) -> Command[Any]:
        """Return what a flow would begin with, for its dry run; see that the model is one that somebody knows."""
        if not isinstance(command, self.flows):
            return command
        asked = self._asked(command, call)
        await self._placing.known(asked.model, wait=False)
        return asked.begin()

    async def perform(self, effect: Any) -> Commands:
        """Fail leases as they expire, for as long as there are any."""
        if not isinstance(effect, Sweep):
            return await super().perform(effect)
        while True:
            pool = self.context.world.get(f"inference/{effect.service_id}")
            for request in list(pool.requests.values()) if pool else ():
                carried = _LOOK if carried_here(request) else 0.0  # whoever carries it knows better how it ended
                if request.expires_at + carried <= time.time():
                    await self._expired(request, "the lease was not settled in time", "TIMEOUT")
            await asyncio.sleep(_LOOK)

    async def flow(self, command: Command[Any], call: Call, parts: Parts) -> View:
        """Give a lease, or carry a request; either ends by its deadline, also when nobody listens any more."""
        asked = self._asked(command, call)
        if isinstance(command, u.LeaseModel) and command.probe:
            return await self._lease(asked, command.avoid or "", parts)  # waits for its commit at most
        try:
            left = asked.deadline - time.time()
            async with asyncio.timeout(left - min(_EARLY, left / 10)) as clock:
                if isinstance(command, u.LeaseModel):
                    return await self._lease(asked, command.avoid or "", parts)
                return await self._request(asked, TASKS[type(command)], command, parts)
        except TimeoutError:
            if not clock.expired():
                raise
            refusal = self._placing.unwoken(asked)
            why = f": {refusal.message}" if refusal else ""
            raise Timeout(f"{command.spec.name} took longer than asked{why}") from None

    async def answer(self, query: Query[Any]) -> View:
        """Answer a query."""
        match query:
            case u.ListServed(type=wanted):
                usage = await self.context.read.rows("SELECT * FROM usage")
                return statistics.models(self.context.world.values(), usage, wanted)
            case u.GetLoad(service_id=ident):
                return await self._load(ident)
            case u.GetMetrics(service_id=ident):
                return await self._metrics(ident)
            case u.GetSpeeds(model_id=ident):
                return statistics.speeds(await self.context.read.rows(statistics.SPEEDS, (ident,)))
            case u.ListVoices(model=name):
                return await self._voices(name)
        return await super().answer(query)

    # --- a request ------------------------------------------------------------------------------------------

    def _asked(self, command: Any, call: Call) -> PlacementRequest:
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
            TASKS[type(command)].types,
            lambda: max(deadline - time.time(), 0.001),
            deadline,
            getattr(command, "wait", True),
            self._holder,
            bool(getattr(command, "tools", None)),
        )

    async def _lease(self, asked: PlacementRequest, avoid: str, parts: Parts) -> u.Lease:
        started, route = await self._placing.place(asked, self._placing.admission.number(), parts, avoid=avoid)
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
        """Send a lease ahead of the answer, as a part: when nobody is there to take it, the server says so by then.

        Whoever it has been sent to has to settle it, be it that they leave in this moment.
        """
        try:
            await parts.send({"lease": lease})
            await self._placing.finish(self.context.peers.client.nc.flush())  # itself it would swallow a cancellation
        except BaseException:
            await self._placing.finish(self._settle(started, **_CALLED_OFF))
            raise

    async def _request(self, asked: PlacementRequest, task: RequestKind, command: Command[Any], parts: Parts) -> View:
        """Get a replica, ask its engine, settle. Another replica is tried only before something was passed on."""
        number, avoid = self._placing.admission.number(), ""
        for attempt in range(1, _TRIES + 1):
            started, route = await self._placing.place(asked, number, parts, avoid=avoid)
            try:
                return await self._carry(asked, started, route, task, command, parts)
            except openai_dialect.BrokenAnswer as broken:
                if (broken.begun and parts.requested) or attempt == _TRIES:
                    raise Unavailable(
                        "the engine went away in the middle of the request", reason="ENGINE_GONE", begun=broken.begun
                    ) from None
                avoid = started.process_id
        raise AssertionError("the last attempt returns or raises")

    async def _carry(
        self,
        asked: PlacementRequest,
        lease: u.RequestStarted,
        route: Route,
        task: RequestKind,
        command: Any,
        parts: Parts,
    ) -> View:
        """Ask the engine and settle, whatever happens."""
        begun, send = time.monotonic(), Send(parts)
        try:
            if task.run is None or route.dialect != "openai":
                raise ExecutionFailed(f"{route.dialect} engines are not asked for this yet", reason="NO_DIALECT")
            view, usage = await task.run(self._http, route, command, lease, send)
        except asyncio.CancelledError:
            silent = asked.late() and not send.heard
            patience = _SILENT if parts.requested else _SILENT_WHOLE
            said = _unanswered(time.monotonic() - begun, patience) if silent else _CALLED_OFF
            await self._placing.finish(self._settle(lease, **said))
            raise
        except openai_dialect.BrokenAnswer:
            await self._settle(lease, "failed", error="the engine went away", error_code="ENGINE_GONE")
            raise
        except AimaError as error:
            await self._settle(lease, "failed", error=error.reason, error_code=_code(error))
            raise
        except Exception:
            await self._settle(lease, "failed", error="INTERNAL_ERROR", error_code="INTERNAL_ERROR")
            raise
        await self._settle(lease, "completed", usage=u.TokensUsed(**usage), time_to_first_token=send.first)
        return view

    async def _settle(self, lease: u.RequestStarted, outcome: u.Outcome, **said: Any) -> None:
        with contextlib.suppress(NotFound):  # it has expired meanwhile
            await self.context.record(u.Settle(request_id=lease.request_id, outcome=outcome, **said))

    async def _expired(self, request: u.RequestStarted, error: str, code: str) -> None:
        await self.context.record(
            i.RecordExpired(service_id=request.service_id, request_id=request.request_id, error=error, error_code=code)
        )

    # --- queries --------------------------------------------------------------------------------------------

    async def _hear(self) -> None:
        """Take in what the service domain has said, as far as it tells soon."""
        with contextlib.suppress(AimaError, TimeoutError):
            async with asyncio.timeout(_HEAR):
                await self.context.caught_up("service")

    async def _load(self, ident: str | None) -> u.Load:
        await self._hear()  # the service domain asks whether a replica still has requests that it has just let go
        now, admission = time.time(), self._placing.admission
        return u.Load(
            services=[
                statistics.load(pool, admission.queued(pool.service_id), now)
                for pool in self.context.world.values()
                if ident in (None, pool.service_id)
            ]
        )

    async def _metrics(self, ident: str) -> u.ServiceMetrics:
        if f"inference/{ident}" not in self.context.world:
            await self._hear()
        pool = self.context.world.get(f"inference/{ident}")
        if pool is None:
            raise NotFound(f"nothing is known of a service {ident}", reason="SERVICE_NOT_FOUND", service_id=ident)
        now, read = time.time(), self.context.read.rows
        rows = statistics.Rows(
            await read(statistics.USAGE, (ident,)),
            await read(statistics.RECENT, (ident, *statistics.last_minute(now))),
            await read(statistics.LATENCIES, (ident, *statistics.last_hour(now))),
        )
        return statistics.metrics(pool, rows, self._placing.admission.queued(ident))

    async def _voices(self, name: str | None) -> u.Voices:
        """Ask one replica of each text-to-speech service for its voices."""
        found: dict[str, u.Voice] = {}
        for pool in self.context.world.values():
            route = next((route for route in pool.routes if route.healthy), None)
            if route and pool.type == "tts" and (name is None or pool.serves(name)):
                for ident, title, language in await openai_dialect.voices(self._http, route.endpoint):
                    found[ident] = u.Voice(id=ident, name=title, language=language)
        return u.Voices(voices=list(found.values()))


_CALLED_OFF: dict[str, Any] = {"outcome": "cancelled", "error": "the caller has gone, or its time is up"}


def _unanswered(seconds: float, patience: float) -> dict[str, Any]:
    """Return how a request is settled of which its engine has said nothing for so long, until the deadline."""
    code = "NO_ANSWER" if seconds >= patience else "TIMEOUT"
    return {"outcome": "failed", "error": "the engine said nothing before the deadline", "error_code": code}


def _code(error: AimaError) -> str:
    """Return what an engine's error is recorded as; what the caller did wrong blames no replica."""
    return "ENGINE_REFUSED" if isinstance(error, ValidationFailed) else error.reason


def react(recorded: Recorded) -> Sequence[Command[Any]]:
    """Turn the service domain's news into pools and routes. Pure."""
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
