"""The inference domain's I/O: sends requests to engines, grants leases and expires them, and answers queries.

`placement.py` finds the replica for each request.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from aima_core.call import Call, timestamp
from aima_core.domain import Commands, Context, Outside, Parts
from aima_core.errors import ExecutionFailed, Timeout
from aima_core.store.records import Recorded
from aima_core.units import Command, View
from aima_engines.engine_client import EngineClient
from aima_engines.engine_errors import fault_of_request, may_be_the_requests_fault
from services.inference import internal as i
from services.inference import units as u
from services.inference.outside.engine_requests import CANCELLED, REQUEST_KINDS, EngineRequests, fields_of
from services.inference.outside.figures import Figures
from services.inference.outside.placement import Placement
from services.inference.outside.placement_request import PlacementRequest
from services.inference.outside.trials import Trials
from services.inference.rules.crashes import crashed
from services.inference.rules.decider import Prepared
from services.inference.rules.state import Pool, Sweep, TrySuspect, carried_here
from services.service import units as service

_SWEEP = 1.0  # seconds between checks for expired leases
_EARLY = 0.02  # seconds; a request times out this long before its deadline, because the core's timeout has no cause


class InferenceOutside(Outside[Pool]):
    """The I/O of the inference domain."""

    flows = (*u.REQUESTS, u.LeaseModel, u.TryReplica)

    def __init__(self, context: Context[Pool], client: Callable[[], EngineClient] = EngineClient) -> None:
        super().__init__(context)
        self._holder = secrets.token_hex(4)  # differs in each run of the process
        self._placement = Placement(context)
        self._requests = EngineRequests(context, self._placement, client())
        self._figures = Figures(context, self._placement.admission, self._requests)
        self._trials = Trials(context, self._placement, self._requests, self._holder)

    async def open(self) -> None:
        """Fail the requests that an earlier run of this process was sending, because their callers are gone."""
        for pool in list(self.context.world.values()):
            for request in pool.requests.values():
                if carried_here(request):
                    await self._expire(request, "the process that sent the request has ended", "INTERNAL_ERROR")

    async def close(self) -> None:
        await self._trials.close()
        await self._placement.close()
        self._requests.close()

    def background(self) -> Iterable[Callable[[], Coroutine[Any, Any, None]]]:
        return (self._placement.watch, self._placement.tick)

    async def prepare(self, command: u.Commands, call: Call) -> Prepared:
        """Return the command. For the dry run of a flow, returns the flow's first command.

        Raises NotFound for an unknown model.
        """
        match command:
            case u.Renew() | u.Settle():
                return command
            case u.TryReplica(process_id=process_id):
                return self._trials.command(process_id)
            case _:
                request = self._placement_request(command, call)
                request.model = await self._placement.known_name(request.model, wait=False)
                return request.command()

    async def perform(self, effect: Any) -> Commands:
        """Fail the expired leases of a service, once a second, or try a suspect replica."""
        if isinstance(effect, TrySuspect):
            return await self._trials.perform(effect)
        if not isinstance(effect, Sweep):
            return await super().perform(effect)
        while True:
            pool = self.context.world.get(f"inference/{effect.service_id}")
            for request in list(pool.requests.values()) if pool else ():
                grace = _SWEEP if carried_here(request) else 0.0  # lets the request's own flow settle it first
                if request.expires_at + grace <= time.time():
                    await self._expire(request, "the lease was not settled in time", "TIMEOUT")
            await asyncio.sleep(_SWEEP)

    async def flow(self, command: u.Requests | u.LeaseModel | u.TryReplica, call: Call, parts: Parts) -> View:
        """Grant a lease, or send a request to an engine. All end by the deadline, even if the caller has left."""
        if isinstance(command, u.TryReplica):
            return await self._trials.run(command.process_id, command.max_age)
        request = self._placement_request(command, call)
        if isinstance(command, u.LeaseModel) and command.probe:
            return await self._lease(request, command.avoid or "", parts)  # a probe waits only for its commit
        try:
            remaining = request.deadline - time.time()
            async with asyncio.timeout(remaining - min(_EARLY, remaining / 10)) as clock:
                if isinstance(command, u.LeaseModel):
                    return await self._lease(request, command.avoid or "", parts)
                return await self._run(request, command, parts)
        except TimeoutError:
            if not clock.expired():
                raise
            seconds = round(request.deadline - call.at, 1)
            why = "the engine has not finished its answer" if request.process_id else self._placement.obstacle(request)
            raise Timeout(f"{command.spec.name} timed out after {seconds:g} s: {why}") from None

    async def _run(self, request: PlacementRequest, command: u.Requests, parts: Parts) -> View:
        """Send a request to an engine. Raises ValidationFailed if the engine fails this request, but answers others."""
        try:
            return await self._requests.run(request, command, parts)
        except ExecutionFailed as error:
            if may_be_the_requests_fault(error) and await self._trials.answers(request.process_id):
                raise fault_of_request(error) from None
            raise

    async def answer(self, query: u.Queries) -> View:
        return await self._figures.answer(query)

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
                client=command.client or "",
                work_deadline=call.at + command.work_timeout if command.work_timeout else 0.0,
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
        """Send a lease as a part before the answer. If the caller has left, settles the lease.

        The flush waits until nats-server has reported whether the caller still listens. A caller that gets the part
        must settle the lease, even if the caller leaves at this moment.
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
        case service.ReplicaFailed(service_id=ident, process_id=process_id, exit_code=exit_code):
            return [i.RecordNoRoute(service_id=ident, process_id=process_id, crashed=crashed(exit_code))]
        case (
            service.ReplicaLeaving(service_id=ident, process_id=process_id)
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
