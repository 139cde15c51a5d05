"""Everything of the service domain that awaits: what it asks of its peers, and what it makes of their news."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from aima_core.call import Call
from aima_core.domain import Commands, Context, Outside
from aima_core.errors import (
    AimaError,
    Conflict,
    EngineNotRunning,
    InsufficientResources,
    NotFound,
    Timeout,
    Unavailable,
)
from aima_core.records import Recorded
from aima_core.units import Command, Query, View
from services.engine import units as engine
from services.model import units as model
from services.resource import units as resource
from services.service import selection, state, views
from services.service import units as u

_STOP_TIMEOUT = 10.0  # seconds that an engine gets to end by itself
_CATCH_UP = 2.0  # seconds that the engine domain gets to say what it knows
_ASK = 3.0  # seconds for a request that a peer answers at once; one that dies over it is asked again


class ServiceOutside(Outside[state.Service]):
    """The service domain's side of the world."""

    def __init__(self, context: Context[state.Service]) -> None:
        super().__init__(context)
        self._asking: dict[str, asyncio.Task[engine.Started]] = {}

    async def close(self) -> None:
        """Ask no more."""
        for asking in self._asking.values():
            asking.cancel()

    async def prepare(self, command: Command[Any], call: Call) -> Command[Any]:
        """Look up the model, and choose the engine."""
        match command:
            case u.CreateService():
                return await self._prepare_create(command)
            case u.StartService():
                return await self._prepare_start(command)
        return await super().prepare(command, call)

    async def perform(self, effect: Any) -> Commands:
        """Do one effect."""
        match effect:
            case state.RunReplica():
                return await self._run(effect)
            case state.EndReplica():
                return await self._end(effect)
            case state.Expire(service_id=ident, run=run, at=at):
                await asyncio.sleep(max(at - time.time(), 0))
                # we may have been away, and all may have been well before the deadline
                with contextlib.suppress(Unavailable, Timeout, TimeoutError):
                    async with asyncio.timeout(_CATCH_UP):
                        await self.context.caught_up("engine")
                return [u.RecordTimedOut(service_id=ident, run=run)]
        return await super().perform(effect)

    async def answer(self, query: Query[Any]) -> View:
        """Answer a query."""
        match query:
            case u.GetService(service_id=ident, as_of=None):
                return views.service_view(self._service(ident))
            case u.GetService(service_id=ident, as_of=as_of):
                was = await self.context.read.state_at(f"service/{ident}", as_of or "")
                if was is None:
                    raise NotFound(f"there was no service {ident} at {as_of}", reason="SERVICE_NOT_FOUND")
                return views.service_view(was)
            case u.ListServices():
                return await self._list(query)
            case u.GetStatus(service_id=ident):
                return views.status_view(self._service(ident))
            case u.GetLogs(service_id=ident, tail=tail):
                return await self._logs(self._service(ident), tail)
            case u.GetHistory(service_id=ident, after=after, limit=limit):
                records = await self.context.read.history(f"service/{ident}", after=after, limit=limit)
                if not records and not after:
                    raise NotFound(f"there has never been a service {ident}", reason="SERVICE_NOT_FOUND")
                return u.History(events=[msgspec.to_builtins(record.wire()) for record in records])
        return await super().answer(query)

    # --- what deciding needs to know ------------------------------------------------------------------------

    async def _prepare_create(self, command: u.CreateService) -> u.Register:
        peers = self.context.peers
        found = await peers.call(model.GetModel(model_id=command.model_id))
        if command.engine:
            await peers.call(engine.GetEngine(name=command.engine))
        given = command.model_dump(exclude={"model_id", "name", "engine", "autoscale"})
        return u.Register(
            name=command.name or found.name[:50],
            named=command.name is not None,
            model_id=found.id,
            model_name=found.name,
            model_type=found.type,
            engine=command.engine or "",
            autoscale=command.autoscale.model_dump() if command.autoscale else None,
            **given,
        )

    async def _prepare_start(self, command: u.StartService) -> u.BeginStart:
        ident, wait, timeout = command.service_id, command.wait, command.timeout
        service = self.context.world.get(f"service/{ident}")
        if service is None or service.status not in ("created", "stopped", "failed"):
            return u.BeginStart(
                service_id=ident, wait=wait, timeout=timeout, engine="", config={}, reason="", tools=False
            )
        about, peers = service.about, self.context.peers
        found = await peers.call(model.GetModel(model_id=about.model_id))
        if found.status != "ready":
            raise Conflict(
                f"model {found.id} is {found.status}: {found.error or 'wait until it is ready'}",
                reason="MODEL_NOT_READY",
            )
        device = "gpu" if about.device == "gpu" else "cpu"
        if device == "gpu" and "accelerator" not in (await peers.call(resource.GetBudget())).pools:
            raise InsufficientResources("this machine has no GPU that AIMA can see", reason="NO_GPU")
        engines = await peers.call(engine.ListEngines(type=found.type, limit=1000))
        chosen, reason = selection.choose_engine(found, engines.items, about.engine, device)
        config = selection.options(found, chosen, about.resource_class, about.config)  # type: ignore[arg-type]
        return u.BeginStart(
            service_id=ident,
            wait=wait,
            timeout=timeout,
            engine=chosen.name,
            config=config,
            reason=reason,
            tools=found.tools and "tools" in chosen.capabilities,
        )

    # --- effects --------------------------------------------------------------------------------------------

    async def _run(self, effect: state.RunReplica) -> Commands:
        """Ask for the instance under the id that is already in our log; a refusal becomes a fact of ours."""
        service = self._service(effect.service_id)
        start, about = service.start, service.about
        assert start
        asked = engine.StartEngine(
            name=start.engine,
            model_id=about.model_id,
            config=start.config,
            process_id=effect.process_id,
            service_id=service.id,
            port=about.port + effect.replica if about.port else None,
            wait=False,
            timeout=min(max(start.deadline - time.time(), 1), 3600),
        )
        # not cut short by a stop: what is carried out after "it is gone" was recorded would be nobody's
        asking = asyncio.create_task(self.context.peers.call(asked, timeout=_ASK))
        self._asking[effect.process_id] = asking
        asking.add_done_callback(lambda task: self._answered(effect.process_id, task))
        try:
            await asyncio.shield(asking)  # asking twice for one process_id starts one
        except (InsufficientResources, EngineNotRunning) as error:
            return [_refused(effect, error)]
        except (Unavailable, Timeout):
            raise  # asked again until the deadline of the start
        except AimaError as error:
            return [_refused(effect, error)]
        return []

    def _answered(self, process_id: str, asking: asyncio.Task[engine.Started]) -> None:
        self._asking.pop(process_id, None)
        if not asking.cancelled():
            asking.exception()  # seen: whoever asked may have been called off

    async def _end(self, effect: state.EndReplica) -> Commands:
        if asking := self._asking.get(effect.process_id):
            await asyncio.wait((asking,))
        asked = engine.StopEngine(name=effect.process_id, force=effect.force, timeout=_STOP_TIMEOUT)
        with contextlib.suppress(NotFound):  # the engine domain has never heard of it
            await self.context.peers.call(asked)
        await self.context.caught_up("engine")  # or its older news, coming late, would look like a stray
        return [u.RecordReplicaEnded(service_id=effect.service_id, process_id=effect.process_id)]

    # --- queries --------------------------------------------------------------------------------------------

    def _service(self, ident: str) -> state.Service:
        service = self.context.world.get(f"service/{ident}")
        if service is None:
            known = [other.id for other in self.context.world.values()][:20]
            raise NotFound(
                f"there is no service {ident}; there are {', '.join(known) or 'none'}",
                reason="SERVICE_NOT_FOUND",
                known=known,
            )
        return service

    async def _list(self, query: u.ListServices) -> u.ServiceList:
        if query.status == "degraded" or query.status == "running":
            # which of the two it is changes with every replica, so the state says it, not the table
            found = [s for s in self.context.world.values() if s.status == query.status]
            wanted = [s for s in found if query.model_id in (None, s.about.model_id)]
            page = wanted[query.offset : query.offset + query.limit]
            return u.ServiceList(services=[views.service_view(s) for s in page], total=len(wanted))
        rows, total = await self.context.read.page(
            "services",
            where={"status": query.status, "model_id": query.model_id},
            limit=query.limit,
            offset=query.offset,
        )
        states = (self.context.world.get(f"service/{row['id']}") for row in rows)
        return u.ServiceList(services=[views.service_view(s) for s in states if s], total=total)

    async def _logs(self, service: state.Service, tail: int) -> u.Logs:
        lines: list[str] = []
        for replica in range(len(service.members) or (service.start.replicas if service.start else 0)):
            process_id = state.process_of(service.id, service.run, replica)
            try:
                found = await self.context.peers.call(engine.GetLogs(process_id=process_id, tail=tail))
            except NotFound:
                continue
            lines += [f"{process_id}: {line}" for line in found.logs]
        return u.Logs(logs=lines)


def _refused(effect: state.RunReplica, error: AimaError) -> u.RecordReplicaFailed:
    return u.RecordReplicaFailed(
        service_id=effect.service_id,
        process_id=effect.process_id,
        error=error.message,
        error_code=error.reason,
        ended=True,
    )


def react(recorded: Recorded) -> Sequence[Command[Any]]:
    """Turn the engine domain's news of a process of ours into a command to its service. Pure."""
    match recorded.event:
        case engine.StartProgress(service_id=ident) as event if ident:
            return [
                u.RecordReplicaProgress(
                    service_id=ident,
                    process_id=event.process_id,
                    phase=event.phase,
                    message=event.message,
                    progress=event.progress,
                )
            ]
        case engine.EngineStarted(service_id=ident) as event if ident:
            return [
                u.RecordReplicaReady(
                    service_id=ident,
                    process_id=event.process_id,
                    endpoint=event.endpoint,
                    node=event.node,
                    served_model=event.served_model,
                    dialect=event.dialect,
                )
            ]
        case engine.HealthChanged(service_id=ident) as event if ident:
            return [u.RecordReplicaHealth(service_id=ident, process_id=event.process_id, status=event.new_status)]
        case engine.EngineError(service_id=ident) as event if ident:
            return [
                u.RecordReplicaFailed(
                    service_id=ident, process_id=event.process_id, error=event.error, error_code=event.error_code
                )
            ]
        case engine.EngineStopped(service_id=ident) as event if ident:
            return [u.RecordReplicaEnded(service_id=ident, process_id=event.process_id, reason=event.reason)]
        case _:
            return []
