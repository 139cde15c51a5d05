"""Everything of the service domain that awaits: what it asks of its peers, and what it makes of their news."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

import msgspec

from aima_core.call import Call
from aima_core.domain import Commands, Context, Outside
from aima_core.errors import AimaError, NotFound
from aima_core.store.records import Recorded
from aima_core.units import Command, Query, View
from services.engine import units as engine
from services.inference import units as inference
from services.model import units as model
from services.service import internal as i
from services.service import units as u
from services.service.outside.memory import MemoryFinder, Need
from services.service.outside.recommendation_facts import RecommendationFacts
from services.service.outside.reconciler import Reconciler
from services.service.outside.replica_effects import ReplicaEffects
from services.service.outside.start_facts import StartFacts
from services.service.rules import state, views
from services.service.rules.decider import unknown
from services.service.rules.scaling import within

_GLANCE = 1.0  # seconds for what only adds to an answer
_ANSWERING = 0.25  # seconds before its deadline at which a caller is told that its start has taken too long


class ServiceOutside(Outside[state.Service]):
    """The service domain's side of the world."""

    def __init__(self, context: Context[state.Service]) -> None:
        super().__init__(context)
        self._room = MemoryFinder(context)
        self._facts = StartFacts(context, self._room)
        self._keeper = Reconciler(context, self._room)
        self._optimizer = RecommendationFacts(context, self._facts)
        self._performing = ReplicaEffects(context)

    async def close(self) -> None:
        """Ask no more."""
        self._performing.close()

    def background(self) -> Iterable[Callable[[], Coroutine[Any, Any, None]]]:
        """Keep an eye on the load."""
        return (self._keeper.keep,)

    async def prepare(self, command: Command[Any], call: Call) -> Command[Any]:
        """Look up the model, choose engine and device, see whether there is room."""
        match command:
            case u.CreateService():
                return await self._prepare_create(command)
            case u.StartService():
                return await self._prepare_start(command, call)
            case u.ScaleService():
                return await self._prepare_scale(command)
        return await super().prepare(command, call)

    async def perform(self, effect: Any) -> Commands:
        """Do one effect."""
        return await self._performing.perform(effect)

    async def answer(self, query: Query[Any]) -> View:
        """Answer a query."""
        match query:
            case u.GetService(service_id=ident, as_of=None):
                return await self._get(self._service(ident))
            case u.GetService(service_id=ident, as_of=as_of):
                was = await self.context.read.state_at(f"service/{ident}", as_of or "")
                if was is None:
                    raise NotFound(f"there was no service {ident} at {as_of}", reason="SERVICE_NOT_FOUND")
                return views.service_view(was)
            case u.ListServices():
                return await self._list(query)
            case u.GetStatus(service_id=ident):
                return await self._status(self._service(ident))
            case u.Recommend(model_id=model_id, hint=hint):
                return await self._optimizer.recommend(model_id, hint)
            case u.GetLogs(service_id=ident, tail=tail):
                return await self._logs(self._service(ident), tail)
            case u.GetHistory(service_id=ident, after=after, limit=limit):
                records = await self.context.read.history(f"service/{ident}", after=after, limit=limit)
                if not records and not after:
                    raise NotFound(f"there has never been a service {ident}", reason="SERVICE_NOT_FOUND")
                return u.History(events=[msgspec.to_builtins(record.wire()) for record in records])
        return await super().answer(query)

    # --- what deciding needs to know ------------------------------------------------------------------------

    async def _prepare_create(self, command: u.CreateService) -> i.Register:
        peers = self.context.peers
        found = model.present(await peers.call(model.GetModel(model_id=command.model_id)))
        if command.engine:
            await peers.call(engine.GetEngine(name=command.engine))
        if command.config:
            await self._facts.check(found, command.engine, command.config)
        given = command.model_dump(exclude={"model_id", "name", "engine", "autoscale"})
        return i.Register(
            name=command.name or found.name[:50],
            named=command.name is not None,
            model_id=found.id,
            model_name=found.name,
            model_type=found.type,
            engine=command.engine or "",
            autoscale=command.autoscale.model_dump() if command.autoscale else None,
            **given,
        )

    async def _prepare_start(self, command: u.StartService, call: Call) -> i.BeginStart:
        ident, wait, timeout = command.service_id, command.wait, command.timeout
        if wait and call.deadline:  # who waits must be told before giving up, and then nothing may be left of it
            timeout = max(min(timeout, call.deadline - _ANSWERING - time.time()), 0.0)
        service = self.context.world.get(f"service/{ident}")
        if service is None or service.runs or service.status == "stopping":
            return i.BeginStart(service_id=ident, wait=wait, timeout=timeout)
        replicas = within(service.about, service.wanted)
        return await self._facts.of(service, replicas=replicas, wait=wait, timeout=timeout, gently=command.wake)

    async def _prepare_scale(self, command: u.ScaleService) -> i.BeginScale:
        ident, replicas = command.service_id, command.replicas
        scale = i.BeginScale(service_id=ident, replicas=replicas, reason="requested")
        service = self.context.world.get(f"service/{ident}")
        if service is None:
            return scale
        if service.asleep and replicas:
            timeout = u.StartService.model_fields["timeout"].default
            awake = within(service.about, replicas)
            start = await self._facts.of(service, replicas=awake, wait=False, timeout=timeout)
            return scale.model_copy(update={"start": start, "makes_room": start.makes_room})
        more = within(service.about, replicas) - len(service.members)
        if not service.runs or more <= 0 or service.start is None:
            return scale
        room = await self._room.made(service, more, Need(service.start.memory, service.start.gpu_fraction))
        return scale.model_copy(update={"makes_room": room})

    # --- queries --------------------------------------------------------------------------------------------

    def _service(self, ident: str) -> state.Service:
        service = self.context.world.get(f"service/{ident}")
        if service is None:
            raise unknown(self.context.world, ident)
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

    async def _get(self, service: state.Service) -> u.ServiceView:
        found: inference.ServiceMetrics | None = None
        with contextlib.suppress(AimaError):
            found = await self.context.peers.call(inference.GetMetrics(service_id=service.id), timeout=_GLANCE)
        return views.service_view(service, views.metrics(found) if found else None)

    async def _status(self, service: state.Service) -> u.StatusView:
        instances: list[engine.Instance] = []
        if service.start and service.answering():
            with contextlib.suppress(AimaError):
                asked = engine.GetEngine(name=service.start.engine)
                instances = (await self.context.peers.call(asked, timeout=_GLANCE)).instances
        used = {found.process_id: found.memory_bytes for found in instances if found.memory_bytes}
        return views.status_view(service, used, time.time())

    async def _logs(self, service: state.Service, tail: int) -> u.Logs:
        lines: list[str] = []
        begun = views.begun(service)  # an earlier service of the name may have had processes of the same ids
        for process_id in views.logged(service):
            try:
                found = await self.context.peers.call(engine.GetLogs(process_id=process_id, tail=tail, since=begun))
            except NotFound:
                continue
            lines += [f"{process_id}: {line}" for line in found.logs]
        return u.Logs(logs=lines)


def react(recorded: Recorded) -> Sequence[Command[Any]]:
    """Turn the engine domain's news of a process of ours into a command to its service. Pure."""
    match recorded.event:
        case engine.StartProgress(service_id=ident) as event if ident:
            return [
                i.RecordReplicaProgress(
                    service_id=ident,
                    process_id=event.process_id,
                    phase=event.phase,
                    message=event.message,
                    progress=event.progress,
                )
            ]
        case engine.EngineStarted(service_id=ident) as event if ident:
            return [
                i.RecordReplicaReady(
                    service_id=ident,
                    process_id=event.process_id,
                    endpoint=event.endpoint,
                    node=event.node,
                    served_model=event.served_model,
                    dialect=event.dialect,
                )
            ]
        case engine.HealthChanged(service_id=ident) as event if ident:
            return [i.RecordReplicaHealth(service_id=ident, process_id=event.process_id, status=event.new_status)]
        case engine.EngineError(service_id=ident) as event if ident:
            return [
                i.RecordReplicaFailed(
                    service_id=ident, process_id=event.process_id, error=event.error, error_code=event.error_code
                )
            ]
        case engine.EngineStopped(service_id=ident) as event if ident:
            return [i.RecordReplicaEnded(service_id=ident, process_id=event.process_id, reason=event.reason)]
        case _:
            return []
