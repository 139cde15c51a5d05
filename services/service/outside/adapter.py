"""The entry point of the service domain's I/O: prepares commands, performs effects, answers queries.

`react` turns events of the engine domain into commands of the service domain. The rules make all decisions.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, assert_never

import msgspec

from aima_core.call import Call
from aima_core.domain import Commands, Context, Outside
from aima_core.errors import AimaError, NotFound
from aima_core.store.records import Recorded
from aima_core.units import Command, View
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
from services.service.rules.decider import Prepared, unknown
from services.service.rules.scaling import within

_OPTIONAL = 1.0  # seconds that a peer has to answer, if the service domain can also answer without the peer's facts


class ServiceOutside(Outside[state.Service]):
    """The I/O of the service domain."""

    def __init__(self, context: Context[state.Service]) -> None:
        super().__init__(context)
        self._memory = MemoryFinder(context)
        self._facts = StartFacts(context, self._memory)
        self._reconciler = Reconciler(context, self._memory)
        self._recommendation = RecommendationFacts(context, self._facts)
        self._effects = ReplicaEffects(context)

    async def close(self) -> None:
        self._effects.close()

    def background(self) -> Iterable[Callable[[], Coroutine[Any, Any, None]]]:
        return (self._reconciler.run,)

    async def prepare(self, command: u.Commands, call: Call) -> Prepared:  # noqa: ARG002 (the core's)
        """Look up the model, choose engine and device, and check the memory."""
        match command:
            case u.CreateService():
                return await self._prepare_create(command)
            case u.StartService():
                return await self._prepare_start(command)
            case u.ScaleService():
                return await self._prepare_scale(command)
            case u.StopService() | u.DeleteService():
                return command
            case _:
                assert_never(command)

    async def perform(self, effect: Any) -> Commands:
        return await self._effects.perform(effect)

    async def answer(self, query: u.Queries) -> View:
        match query:
            case u.GetService(service_id=ident, as_of=None):
                return await self._get(self._service(ident))
            case u.GetService(service_id=ident, as_of=as_of):
                past, version = await self.context.read.state_at(f"service/{ident}", as_of or "")
                if past is None:
                    raise NotFound(f"there was no service {ident} at {as_of}", reason="SERVICE_NOT_FOUND")
                return views.service_view(past, version=version)
            case u.ListServices():
                return await self._list(query)
            case u.GetStatus(service_id=ident):
                return await self._status(self._service(ident))
            case u.Recommend(model_id=model_id, hint=hint):
                return await self._recommendation.recommend(model_id, hint)
            case u.GetLogs(service_id=ident, tail=tail):
                return await self._logs(self._service(ident), tail)
            case u.GetHistory(service_id=ident, after=after, limit=limit):
                records = await self.context.read.history(f"service/{ident}", after=after, limit=limit)
                if not records and not after:
                    raise NotFound(f"there has never been a service {ident}", reason="SERVICE_NOT_FOUND")
                return u.History(events=[msgspec.to_builtins(record.wire()) for record in records])
            case _:
                assert_never(query)

    # --- preparation of commands ----------------------------------------------------------------------------

    async def _prepare_create(self, command: u.CreateService) -> i.Register:
        peers = self.context.peers
        model_view = model.present(await peers.call(model.GetModel(model_id=command.model_id)))
        if command.engine:
            await peers.call(engine.GetEngine(name=command.engine))
        if command.config:
            await self._facts.check(model_view, command.engine, command.config)
        other_fields = command.model_dump(exclude={"model_id", "name", "engine", "autoscale"})
        return i.Register(
            name=command.name or model_view.name[:50],
            named=command.name is not None,
            model_id=model_view.id,
            model_name=model_view.name,
            model_type=model_view.type,
            engine=command.engine or "",
            autoscale=command.autoscale.model_dump() if command.autoscale else None,
            **other_fields,
        )

    async def _prepare_start(self, command: u.StartService) -> i.BeginStart:
        ident, wait, timeout = command.service_id, command.wait, command.timeout
        service = self.context.world.get(f"service/{ident}")
        if service is None or service.runs or service.status == "stopping":
            return i.BeginStart(service_id=ident, wait=wait, timeout=timeout)
        replicas = within(service.about, service.desired_replicas)
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
        more = within(service.about, replicas) - len(service.replica_set)
        if not service.runs or more <= 0 or service.start is None:
            return scale
        need = Need(service.start.memory, service.start.gpu_fraction)
        return scale.model_copy(update={"makes_room": await self._memory.make_room(service, more, need)})

    # --- queries --------------------------------------------------------------------------------------------

    def _service(self, ident: str) -> state.Service:
        service = self.context.world.get(f"service/{ident}")
        if service is None:
            raise unknown(self.context.world, ident)
        return service

    async def _list(self, query: u.ListServices) -> u.ServiceList:
        if query.status == "degraded" or query.status == "running":
            # only the state distinguishes running from degraded: replica events change this status, and the table
            # ignores these events
            matches = [
                service
                for service in self.context.world.values()
                if service.status == query.status and query.model_id in (None, service.about.model_id)
            ]
            page = matches[query.offset : query.offset + query.limit]
            return u.ServiceList(services=[views.service_view(service) for service in page], total=len(matches))
        rows, total = await self.context.read.page(
            "services",
            where={"status": query.status, "model_id": query.model_id},
            limit=query.limit,
            offset=query.offset,
        )
        states = (self.context.world.get(f"service/{row['id']}") for row in rows)
        return u.ServiceList(services=[views.service_view(service) for service in states if service], total=total)

    async def _get(self, service: state.Service) -> u.ServiceView:
        measured: inference.ServiceMetrics | None = None
        with contextlib.suppress(AimaError):
            measured = await self.context.peers.call(inference.GetMetrics(service_id=service.id), timeout=_OPTIONAL)
        return views.service_view(service, views.metrics(measured) if measured else None)

    async def _status(self, service: state.Service) -> u.StatusView:
        instances: list[engine.Instance] = []
        if service.start and service.answering():
            with contextlib.suppress(AimaError):
                query = engine.GetEngine(name=service.start.engine)
                instances = (await self.context.peers.call(query, timeout=_OPTIONAL)).instances
        memory = {instance.process_id: instance.memory_bytes for instance in instances if instance.memory_bytes}
        making_room = [
            other.id
            for other in self.context.world.values()
            if other.status == "stopping" and other.stop and other.stop.made_room_for == service.id
        ]
        working = await self._working(service)
        now = views.Now(time.time(), self.context.settings.grace, memory, making_room, working)
        return views.status_view(service, now)

    async def _working(self, service: state.Service) -> dict[str, int]:
        """Return the number of requests under way by process, if a replica does not answer its health check."""
        if not any(replica.silent_since for replica in service.replica_set):
            return {}
        with contextlib.suppress(AimaError):
            load = await self.context.peers.call(inference.GetLoad(service_id=service.id), timeout=_OPTIONAL)
            return {replica.process_id: replica.outstanding for each in load.services for replica in each.replicas}
        return {}

    async def _logs(self, service: state.Service, tail: int) -> u.Logs:
        lines: list[str] = []
        # without `since`, the logs of a deleted service with the same name would appear, if it used the same ids
        since = views.start_requested_at(service)
        for process_id in views.logged(service):
            try:
                logs = await self.context.peers.call(engine.GetLogs(process_id=process_id, tail=tail, since=since))
            except NotFound:
                continue
            lines += [f"{process_id}: {line}" for line in logs.logs]
        return u.Logs(logs=lines)


def react(recorded: Recorded) -> Sequence[Command[Any]]:
    """Return the command for an engine event about a process of a service. Empty for other processes. Pure."""
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
                    service_id=ident,
                    process_id=event.process_id,
                    error=event.error,
                    error_code=event.error_code,
                    exit_code=event.exit_code,
                )
            ]
        case engine.EngineStopped(service_id=ident) as event if ident:
            return [i.RecordReplicaEnded(service_id=ident, process_id=event.process_id, reason=event.reason)]
        case _:
            return []
