"""Decides the commands of the inference domain. Pure.

`state.py` has the state that decisions use. `routing.py` chooses the replica for a request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from aima_core.call import Call, timestamp
from aima_core.domain import World
from aima_core.errors import NotFound
from aima_core.suggestions import find_named
from aima_core.units import Event, Success, View
from services.inference import internal as i
from services.inference import units as u
from services.inference.rules.breaker import BLAMED
from services.inference.rules.routing import choose
from services.inference.rules.state import Pool, Route, outcome_of

_ROUTED = ("starting", "running")  # a service may have replicas only in these phases


Prepared = i.BeginRequest | u.Renew | u.Settle
"""The commands that callers send, as `prepare` returns them. A request to a model becomes BeginRequest."""


def resolve(world: World[Pool], text: str) -> str:
    """Return the id of the service with this id or name. Returns an unknown text unchanged. See `find_named`."""
    if f"inference/{text}" in world:
        return text
    return find_named(text, {pool.service_id: (pool.service_name,) for pool in world.values()}, "service_id") or text


def decide(world: World[Pool], command: Prepared | i.Reports, call: Call) -> list[Event]:
    """Return the events of a command. Empty if it changes nothing. Raises NotFound, and the errors of `choose`."""
    match command:
        case i.BeginRequest():
            pool, route = choose(world, command, call.at)
            return [_started(pool, route, command, _request_id(world, command, call), call)]
        case u.Settle(request_id=request_id):
            return _settle(world, request_id, command, call)
        case u.Renew(request_id=request_id, timeout=timeout):
            request = _under_way(world, request_id, call)
            until = call.at + timeout
            return [u.LeaseRenewed(request_id=request_id, service_id=request.service_id, expires_at=until)]
    current = world.get(f"inference/{command.service_id}")
    match command:
        case i.RecordService():
            return [] if current and current.added else [u.ServiceAdded(**command.model_dump())]
        case i.RecordRoute(process_id=process_id):
            exists = current and current.route(process_id)
            return [] if exists else [u.RouteAdded(**command.model_dump())]
    return _decide_for(current, command, call) if current else []


def _decide_for(
    pool: Pool,
    command: i.RecordRemoved | i.RecordPhase | i.RecordExpired | i.RecordRefused | i.RecordHealth | i.RecordNoRoute,
    call: Call,
) -> list[Event]:
    """Return the events for a report about an existing service."""
    match command:
        case i.RecordRemoved():
            removed = u.ServiceRemoved(service_id=pool.service_id)
            return [*([removed] if pool.added else []), *_no_routes(pool)]
        case i.RecordPhase(phase=phase):
            event = u.PhaseChanged(**command.model_dump())
            return [*([event] if phase != pool.phase else []), *(() if phase in _ROUTED else _no_routes(pool))]
        case i.RecordExpired(request_id=request_id, error=error, error_code=code):
            request = pool.requests.get(request_id)
            return [_failed(request, error, code, call)] if request else []
        case i.RecordRefused(service_id=ident, count=count):
            return [u.RequestsRefused(service_id=ident, count=count)]
        case i.RecordHealth(process_id=process_id, healthy=healthy):
            route = pool.route(process_id)
            changed = route and route.healthy != healthy
            return [u.RouteChanged(**command.model_dump())] if changed else []
        case i.RecordNoRoute(process_id=process_id):
            return [u.RouteRemoved(**command.model_dump())] if pool.route(process_id) else []
        case _:
            assert_never(command)


def _no_routes(pool: Pool) -> list[Event]:
    return [u.RouteRemoved(service_id=pool.service_id, process_id=route.process_id) for route in pool.routes]


def _request_id(world: World[Pool], command: i.BeginRequest, call: Call) -> str:
    if command.request_id:
        return command.request_id
    salt = ""
    while any(call.new_id("req", salt) in pool.requests for pool in world.values()):
        salt += "+"  # the id is derived from the call's request id, and a caller may use one request id twice
    return call.new_id("req", salt)


def _started(pool: Pool, route: Route, command: i.BeginRequest, request_id: str, call: Call) -> u.RequestStarted:
    return u.RequestStarted(
        request_id=request_id,
        model=pool.model_id,
        type=pool.type,
        service_id=pool.service_id,
        process_id=route.process_id,
        started_at=call.at,
        expires_at=call.at + command.timeout,
        holder=command.holder,
        concurrency=pool.outstanding(route.process_id) + 1,
        engine=route.engine,
        device=route.device,
        slots=route.slots,
        owner=call.principal,
        client=command.client,
        deadline=command.deadline,
    )


def _settle(world: World[Pool], request_id: str, command: u.Settle, call: Call) -> list[Event]:
    code = _code(command)
    under_way = any(request_id in pool.requests for pool in world.values())
    if not under_way and any(pool.has_settled(request_id, outcome_of(code)) for pool in world.values()):
        return []
    started = _under_way(world, request_id, call)
    if code in BLAMED and not started.holder:
        code = "CALLER_FAILED"  # only a gateway's report counts against a replica; else, a client could block a replica
    if code:
        error = command.error or (
            "the request was cancelled" if command.outcome == "cancelled" else "the request failed"
        )
        return [_failed(started, error, code, call)]
    usage = command.usage or u.TokensUsed()
    return [
        u.RequestCompleted(
            request_id=started.request_id,
            model=started.model,
            type=started.type,
            service_id=started.service_id,
            process_id=started.process_id,
            duration=round(call.at - started.started_at, 6),
            time_to_first_token=command.time_to_first_token,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            concurrency=started.concurrency,
            engine=started.engine,
            device=started.device,
            slots=started.slots,
        )
    ]


def _under_way(world: World[Pool], request_id: str, call: Call) -> u.RequestStarted:
    """Return a request that is under way. Raises NotFound if there is no such request, or if it has another owner."""
    pool = next((pool for pool in world.values() if request_id in pool.requests), None)
    request = pool.requests[request_id] if pool else None
    if request is None or request.owner not in ("", call.principal):
        raise NotFound(f"there is no request {request_id} under way: it was settled, or its lease has expired")
    return request


def _code(command: u.Settle) -> str:
    """Return the error code of an outcome. Empty for a completed request."""
    match command.outcome:
        case "completed":
            return ""
        case "cancelled":
            return "CANCELLED"
        case "failed":
            return command.error_code or "EXECUTION_FAILED"


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


def reply(world: World[Pool], command: Prepared, events: Sequence[Event]) -> View:  # noqa: ARG001 (the core's)
    """Return the answer of a command. Flows do not use this function."""
    match command:
        case u.Renew():
            renewed = events[0]
            assert isinstance(renewed, u.LeaseRenewed)
            return u.Renewed(expires_at=timestamp(renewed.expires_at))
        case u.Settle() | i.BeginRequest():
            return Success()
        case _:
            assert_never(command)
