"""Where requests may go, which are under way, and what may happen to them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, assert_never

import msgspec

from aima_core.call import Call, timestamp
from aima_core.domain import Effect, World
from aima_core.errors import EngineNotRunning, NotFound, ValidationFailed
from aima_core.units import Command, Event, Success, View
from services.inference import units as u


class Route(msgspec.Struct, frozen=True):
    """A replica, and whether it answers its health check."""

    process_id: str
    endpoint: str
    served_model: str
    dialect: str
    tools: bool
    healthy: bool = True


class Pool(msgspec.Struct, frozen=True):
    """A service's replicas and the requests under way on them."""

    service_id: str
    service_name: str = ""
    model_id: str = ""
    model_name: str = ""
    type: str = ""
    routes: tuple[Route, ...] = ()
    requests: dict[str, u.RequestStarted] = {}

    def serves(self, name: str) -> bool:
        """Whether a caller who says `name` means this service, or its model."""
        return name in (self.service_id, self.service_name, self.model_id, self.model_name)

    def outstanding(self, process_id: str) -> int:
        """How many requests are under way on a replica."""
        return sum(1 for request in self.requests.values() if request.process_id == process_id)


class Sweep(Effect, frozen=True):
    """Fail requests that nobody settles in time."""

    service_id: str


def decide(world: World[Pool], command: Command[Any], call: Call) -> list[Event]:
    """Return what happens; nothing when it already is as asked."""
    match command:
        case u.LeaseModel(model=model, type=wanted, timeout=timeout):
            return _begin(world, model, (wanted,) if wanted else (), timeout, call)
        case u.BeginRequest(model=model, types=types, timeout=timeout, holder=holder, avoid=avoid):
            return _begin(world, model, types, timeout, call, holder, avoid, command.needs_tools)
        case u.Settle(request_id=request_id):
            pool = next((pool for pool in world.values() if request_id in pool.requests), None)
            if pool is None:
                raise NotFound(f"no request {request_id} is under way; it was settled, or its lease has expired")
            return [_settled(pool.requests[request_id], command, call)]
    pool = world.get(f"inference/{command.service_id}")  # type: ignore[attr-defined]  # every other command has one
    match command:
        case u.RecordRoute(process_id=process_id):
            known = pool and any(route.process_id == process_id for route in pool.routes)
            return [] if known else [u.RouteAdded(**command.model_dump())]
        case _ if pool is None:
            return []
        case u.RecordExpired(request_id=request_id, error=error, error_code=code):
            request = pool.requests.get(request_id)
            return [_failed(request, error, code, call)] if request else []
        case u.RecordHealth(process_id=process_id, healthy=healthy):
            other = any(route.process_id == process_id and route.healthy != healthy for route in pool.routes)
            changed = u.RouteChanged(service_id=pool.service_id, process_id=process_id, healthy=healthy)
            return [changed] if other else []
        case u.RecordNoRoute(process_id=process_id):
            return [
                u.RouteRemoved(service_id=pool.service_id, process_id=route.process_id)
                for route in pool.routes
                if process_id in ("", route.process_id)
            ]
    raise TypeError(f"inference has no command {command.spec.name}")


def _begin(
    world: World[Pool],
    model: str,
    types: Sequence[str],
    timeout: float,
    call: Call,
    holder: str = "",
    avoid: str = "",
    needs_tools: bool = False,
) -> list[Event]:
    """Choose the healthy replica with the fewest requests under way, among all services of the model."""
    pools = [pool for pool in world.values() if pool.serves(model)]
    fit = [pool for pool in pools if not types or pool.type in types]
    if pools and not fit:
        kinds = " or ".join(types)
        raise ValidationFailed(
            f"model: {model} is of type {pools[0].type}; this needs {kinds}",
            fields=[{"field": "model", "expected": f"a model of type {kinds}"}],
        )
    choices = [(pool, route) for pool in fit for route in pool.routes if route.healthy]
    if not choices:
        raise EngineNotRunning(
            f"no running engine serves {model}"
            + (
                ": its service has no healthy replica"
                if fit
                else "; start a service for it (service.create, service.start)"
            ),
            reason="NO_REPLICA" if fit else "NO_SERVICE",
            model=model,
            services=[pool.service_id for pool in fit],
        )
    if needs_tools and not any(route.tools for _, route in choices):
        raise ValidationFailed(
            f"tools: the chat template of {model} takes no tools",
            fields=[{"field": "tools", "expected": "none: the model's chat template does not know tools"}],
        )
    others = [(pool, route) for pool, route in choices if route.process_id != avoid]
    pool, route = min(others or choices, key=lambda choice: choice[0].outstanding(choice[1].process_id))
    salt = ""
    while any(call.new_id("req", salt) in other.requests for other in world.values()):
        salt += "+"  # the caller chose the id of its request, and has chosen it before
    return [
        u.RequestStarted(
            request_id=call.new_id("req", salt),
            model=pool.model_id,
            type=pool.type,
            service_id=pool.service_id,
            process_id=route.process_id,
            started_at=call.at,
            expires_at=call.at + timeout,
            holder=holder,
        )
    ]


def _settled(started: u.RequestStarted, command: u.Settle, call: Call) -> Event:
    if command.outcome != "completed":
        error = command.error or f"the request was {command.outcome}"
        return _failed(started, error, "CANCELLED" if command.outcome == "cancelled" else "EXECUTION_FAILED", call)
    usage = command.usage or u.TokensUsed()
    return u.RequestCompleted(
        request_id=started.request_id,
        model=started.model,
        type=started.type,
        service_id=started.service_id,
        process_id=started.process_id,
        duration=round(call.at - started.started_at, 6),
        time_to_first_token=command.time_to_first_token,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
    )


def _failed(started: u.RequestStarted, error: str, code: str, call: Call) -> Event:
    return u.RequestFailed(
        request_id=started.request_id,
        model=started.model,
        type=started.type,
        service_id=started.service_id,
        process_id=started.process_id,
        duration=round(call.at - started.started_at, 6),
        error=error,
        error_code=code,
    )


def evolve(pool: Pool | None, event: u.Events) -> Pool | None:
    """Return the pool after the event, None when nothing of it is left. Never raises."""
    pool = pool or Pool(event.service_id)
    replace = msgspec.structs.replace
    match event:
        case u.RouteAdded():
            route = Route(event.process_id, event.endpoint, event.served_model, event.dialect, event.tools)
            return Pool(
                event.service_id,
                event.service_name,
                event.model_id,
                event.model_name,
                event.type,
                (*pool.routes, route),
                pool.requests,
            )
        case u.RouteChanged(process_id=process_id, healthy=healthy):
            routes = tuple(
                replace(route, healthy=healthy) if route.process_id == process_id else route for route in pool.routes
            )
            return replace(pool, routes=routes)
        case u.RouteRemoved(process_id=process_id):
            left = tuple(route for route in pool.routes if route.process_id != process_id)
            return replace(pool, routes=left) if left or pool.requests else None
        case u.RequestStarted(request_id=request_id):
            return replace(pool, requests={**pool.requests, request_id: event})
        case u.RequestCompleted(request_id=request_id) | u.RequestFailed(request_id=request_id):
            requests = {ident: request for ident, request in pool.requests.items() if ident != request_id}
            return replace(pool, requests=requests) if pool.routes or requests else None
        case _:
            assert_never(event)


def todo(pool: Pool) -> Iterable[Effect]:
    """Return what must be happening outside: somebody looks after the leases."""
    return [Sweep(pool.service_id)] if pool.requests else []


def reply(world: World[Pool], command: Command[Any], events: Sequence[Event]) -> View | None:
    """Return the command's answer."""
    if not isinstance(command, u.LeaseModel | u.BeginRequest):
        return Success()
    started = next(event for event in events if isinstance(event, u.RequestStarted))
    pool = world.get(started.stream)
    route = next((route for route in pool.routes if route.process_id == started.process_id), None) if pool else None
    if route is None:
        raise EngineNotRunning("the replica has just gone", reason="NO_REPLICA", model=started.model)
    return u.Lease(
        request_id=started.request_id,
        endpoint=route.endpoint,
        model=route.served_model,
        dialect=route.dialect,
        expires_at=timestamp(started.expires_at),
    )
