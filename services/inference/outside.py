"""Everything of the inference domain that awaits: carrying requests to engines, and looking after leases."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Sequence
from typing import Any

from aima_core.call import Call
from aima_core.domain import Commands, Context, Outside, Parts
from aima_core.errors import AimaError, EngineNotRunning, ExecutionFailed, NotFound, Timeout, Unavailable
from aima_core.records import Recorded
from aima_core.units import Command, Query, View
from services.inference import openai, views
from services.inference import units as u
from services.inference.decider import Pool, Route, Sweep
from services.inference.tasks import TASKS, Task
from services.model import units as model
from services.service import units as service

_LOOK = 1.0  # seconds between looks for leases that have expired
_CATCH_UP = 2.0  # seconds that a peer gets to say what it knows
_TRIES = 2  # replicas that a request is tried on, as long as none has answered anything


class InferenceOutside(Outside[Pool]):
    """The inference domain's side of the world."""

    flows = tuple(TASKS)

    def __init__(self, context: Context[Pool]) -> None:
        super().__init__(context)
        self._http = openai.client()
        self._holder = secrets.token_hex(4)  # another one in each life of the process

    async def open(self) -> None:
        """Fail what an earlier life of this process was carrying: nobody is left to answer it."""
        for pool in list(self.context.world.values()):
            for request in pool.requests.values():
                if request.holder:
                    await self._expired(request, "the process that carried the request has ended", "INTERNAL_ERROR")

    async def close(self) -> None:
        """Let go of the connections."""
        await self._http.aclose()

    async def prepare(self, command: Command[Any], call: Call) -> Command[Any]:
        """See for a lease, and for a request's dry run, that the model is one that somebody knows."""
        if isinstance(command, u.LeaseModel):
            await self._known(command.model)
            return command
        task = TASKS.get(type(command))
        return self._begin(task, command, call) if task else command

    async def perform(self, effect: Any) -> Commands:
        """Fail leases as they expire, for as long as there are any."""
        if not isinstance(effect, Sweep):
            return await super().perform(effect)
        while True:
            pool = self.context.world.get(f"inference/{effect.service_id}")
            for request in list(pool.requests.values()) if pool else ():
                if request.expires_at <= time.time():
                    await self._expired(request, "the lease was not settled in time", "TIMEOUT")
            await asyncio.sleep(_LOOK)

    async def flow(self, command: Command[Any], call: Call, parts: Parts) -> View:
        """Carry a request: lease a replica, ask its engine, settle. Another replica is tried before the first byte."""
        task = TASKS[type(command)]
        avoid = ""
        for attempt in range(1, _TRIES + 1):
            lease, route = await self._lease(task, command, call, avoid)
            try:
                return await self._carry(lease, route, task, command, parts)
            except openai.Broken as broken:
                if broken.begun or attempt == _TRIES:
                    raise Unavailable(
                        "the engine went away in the middle of the request", reason="ENGINE_GONE", begun=broken.begun
                    ) from None
                avoid = lease.process_id
        raise AssertionError("the last attempt returns or raises")

    async def answer(self, query: Query[Any]) -> View:
        """Answer a query."""
        match query:
            case u.ListServed(type=wanted):
                rows = await self.context.read.rows("SELECT * FROM usage")
                return views.models(self.context.world.values(), {row["service_id"]: row for row in rows}, wanted)
            case u.ListVoices(model=name):
                return await self._voices(name)
        return await super().answer(query)

    # --- a request ------------------------------------------------------------------------------------------

    def _begin(self, task: Task, command: Any, call: Call, avoid: str = "") -> u.BeginRequest:
        left = (call.deadline or call.at + command.spec.timeout) - time.time()
        return u.BeginRequest(
            model=command.model,
            types=task.types,
            timeout=max(left, 0.001),
            holder=self._holder,
            avoid=avoid,
            needs_tools=bool(getattr(command, "tools", None)),
        )

    async def _lease(self, task: Task, command: Any, call: Call, avoid: str) -> tuple[u.RequestStarted, Route]:
        begin = self._begin(task, command, call, avoid)
        try:
            records = await self.context.record(begin)
        except EngineNotRunning:
            await self._known(command.model)
            records = await self.context.record(begin)
        lease = records[0].event
        assert isinstance(lease, u.RequestStarted)
        pool = self.context.world.get(lease.stream)
        route = next((route for route in pool.routes if route.process_id == lease.process_id), None) if pool else None
        if route is None:
            await self._settle(lease, "failed", error="the replica has just gone")
            raise EngineNotRunning("the replica has just gone", reason="NO_REPLICA", model=command.model)
        return lease, route

    async def _carry(self, lease: u.RequestStarted, route: Route, task: Task, command: Any, parts: Parts) -> View:
        """Ask the engine and settle, whatever happens."""
        begun = time.monotonic()
        first: list[float] = []

        async def send(part: dict[str, Any]) -> None:
            if not first:
                first.append(round(time.monotonic() - begun, 6))
            await parts.send(part)

        try:
            if task.run is None or route.dialect != "openai":
                raise ExecutionFailed(f"{route.dialect} engines are not asked for this yet", reason="NO_DIALECT")
            view, usage = await task.run(self._http, route, command, lease, send if parts.wanted else None)
        except asyncio.CancelledError:
            gone = asyncio.create_task(self._settle(lease, "cancelled", error="the caller has gone, or its time is up"))
            await asyncio.shield(gone)
            raise
        except openai.Broken:
            await self._settle(lease, "failed", error="the engine went away")
            raise
        except AimaError as error:
            await self._settle(lease, "failed", error=error.reason)
            raise
        except Exception:
            await self._settle(lease, "failed", error="INTERNAL_ERROR")
            raise
        await self._settle(
            lease, "completed", usage=u.TokensUsed(**usage), time_to_first_token=first[0] if first else None
        )
        return view

    async def _settle(self, lease: u.RequestStarted, outcome: u.Outcome, **said: Any) -> None:
        with contextlib.suppress(NotFound):  # it has expired meanwhile
            await self.context.record(u.Settle(request_id=lease.request_id, outcome=outcome, **said))

    async def _expired(self, request: u.RequestStarted, error: str, code: str) -> None:
        await self.context.record(
            u.RecordExpired(service_id=request.service_id, request_id=request.request_id, error=error, error_code=code)
        )

    async def _known(self, name: str) -> None:
        """Take in what the service domain has said until now; raise NotFound for a name that still means nothing.

        Whoever has just been told that a service runs may ask it at once. A peer that is silent knows nothing better.
        """
        if any(pool.serves(name) and pool.routes for pool in self.context.world.values()):
            return
        with contextlib.suppress(Unavailable, Timeout, TimeoutError):
            async with asyncio.timeout(_CATCH_UP):
                await self.context.caught_up("service")
        if any(pool.serves(name) for pool in self.context.world.values()):
            return
        with contextlib.suppress(Unavailable, Timeout):
            await self.context.peers.call(model.GetModel(model_id=name), timeout=_CATCH_UP)

    async def _voices(self, name: str | None) -> u.Voices:
        """Ask one replica of each text-to-speech service for its voices."""
        found: dict[str, u.Voice] = {}
        for pool in self.context.world.values():
            route = next((route for route in pool.routes if route.healthy), None)
            if route and pool.type == "tts" and (name is None or pool.serves(name)):
                for ident, title, language in await openai.voices(self._http, route.endpoint):
                    found[ident] = u.Voice(id=ident, name=title, language=language)
        return u.Voices(voices=list(found.values()))


def react(recorded: Recorded) -> Sequence[Command[Any]]:
    """Turn the service domain's news into routes. Pure."""
    match recorded.event:
        case service.ReplicaStarted() as event:
            return [
                u.RecordRoute(
                    service_id=event.service_id,
                    service_name=event.service_name,
                    model_id=event.model_id,
                    model_name=event.model_name,
                    type=event.model_type,
                    process_id=event.process_id,
                    endpoint=event.endpoint,
                    served_model=event.served_model,
                    dialect=event.dialect,
                    tools=event.tools,
                )
            ]
        case service.ReplicaHealthChanged(service_id=ident, process_id=process_id, status=status):
            return [u.RecordHealth(service_id=ident, process_id=process_id, healthy=status == "healthy")]
        case service.ReplicaFailed(service_id=ident, process_id=process_id):
            return [u.RecordNoRoute(service_id=ident, process_id=process_id)]
        case service.ReplicaEnded(service_id=ident, process_id=process_id):
            return [u.RecordNoRoute(service_id=ident, process_id=process_id)]
        case service.StopRequested(service_id=ident) | service.ServiceFailed(service_id=ident):
            return [u.RecordNoRoute(service_id=ident)]
        case _:
            return []
