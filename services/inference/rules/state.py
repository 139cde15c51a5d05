"""The state of a service's replicas and requests, and how events change it. Pure."""

from __future__ import annotations

from typing import assert_never

import msgspec

from aima_core.domain import Effect
from services.inference import units as u
from services.inference.rules.breaker import TRIAL, TRIAL_TYPES, Breaker
from services.inference.rules.crashes import KEPT

_SETTLED_KEPT = 1000  # number of settlements that are stored, so a repeated settlement changes nothing
_TRY_AGAIN = 5.0  # seconds after an answer in which a suspect replica is not tried


class Route(msgspec.Struct, frozen=True):
    """A replica that may get requests. `healthy` says whether the replica answers its health check.

    With `cancels_whole`, the engine stops when the client leaves, even if the answer is not streamed. `answered_at` is
    when it last answered a request, in Unix seconds. `lost` counts the requests that it has lost since then, because it
    closed their connections.
    """

    process_id: str
    endpoint: str
    served_model: str
    dialect: str
    tools: bool
    healthy: bool = True
    slots: int = 0
    engine: str = ""
    device: str = ""
    cancels_whole: bool = True
    breaker: Breaker = Breaker()
    answered_at: float = 0.0
    lost: int = 0


class Pool(msgspec.Struct, frozen=True):
    """A service, its replicas and the requests under way on them.

    - `added`: whether the service exists. Logs of older releases do not record this and have only routes.
    - `begun`: whether the service was started at least once.
    - `by_process`: number of requests under way by process, including processes that get no new requests.
    - `settled`: the latest settlements, each as "id outcome".
    - `crashed`: the latest processes that crashed while they worked on one request only.
    - `last_used`: when the last request started or ended, in Unix seconds.
    """

    service_id: str
    service_name: str = ""
    model_id: str = ""
    model_name: str = ""
    type: str = ""
    routes: tuple[Route, ...] = ()
    requests: dict[str, u.RequestStarted] = {}
    added: bool = False
    phase: u.Phase = "stopped"
    begun: bool = False
    error: str = ""
    error_code: str = ""
    by_process: dict[str, int] = {}
    refused: int = 0
    last_used: float | None = None
    settled: tuple[str, ...] = ()
    crashed: tuple[str, ...] = ()

    def serves(self, name: str) -> bool:
        """Whether `name` is a name or id of this service or of its model."""
        return name in self.names

    @property
    def names(self) -> tuple[str, ...]:
        """The ids and names by which a request may call the service."""
        return (self.service_id, self.service_name, self.model_id, self.model_name)

    def outstanding(self, process_id: str) -> int:
        """Return the number of requests under way on a replica."""
        return self.by_process.get(process_id, 0)

    def busy_until(self, process_id: str) -> float | None:
        """Return the latest deadline of a replica's requests under way, in Unix seconds. None if there are none."""
        requests = (request for request in self.requests.values() if request.process_id == process_id)
        return max((request.deadline or request.expires_at for request in requests), default=None)

    def has_room(self, route: Route) -> bool:
        """Whether a replica has a free slot."""
        return not route.slots or self.outstanding(route.process_id) < route.slots

    def route(self, process_id: str) -> Route | None:
        return next((route for route in self.routes if route.process_id == process_id), None)

    def has_settled(self, request_id: str, outcome: u.Outcome) -> bool:
        """Whether this request is among the latest settlements, with this outcome."""
        return _settled(request_id, outcome) in self.settled


def carried_here(request: u.RequestStarted) -> bool:
    """Whether the inference domain itself sends the request to the engine. Otherwise, a lease's holder sends it."""
    return bool(request.holder) and not request.holder.startswith(u.GATEWAY)


class Sweep(Effect, frozen=True):
    """Watch the leases of a service's requests, and fail each request whose lease has expired."""

    service_id: str


class TrySuspect(Effect, frozen=True):
    """Send a trial request to a suspect replica at the time `at` (Unix seconds)."""

    service_id: str
    process_id: str
    at: float


def evolve(pool: Pool | None, event: u.Events) -> Pool | None:
    """Return the pool after the event, or None if it has no service, no routes and no requests left. Never raises."""
    pool = _after(pool or Pool(event.service_id), event)
    return pool if pool.added or pool.routes or pool.requests else None


def _after(pool: Pool, event: u.Events) -> Pool:
    replace = msgspec.structs.replace
    match event:
        case u.ServiceAdded():
            return replace(_named(pool, event, added=True), refused=0)
        case u.ServiceRemoved():
            return replace(pool, added=False, phase="stopped", begun=False)
        case u.PhaseChanged(phase=phase, error=error, error_code=code):
            return replace(pool, phase=phase, begun=True, error=error, error_code=code)
        case u.RouteAdded():
            route = Route(
                event.process_id,
                event.endpoint,
                event.served_model,
                event.dialect,
                event.tools,
                slots=event.slots,
                engine=event.engine,
                device=event.device,
                cancels_whole=event.cancels_whole,
                breaker=Breaker(tried=event.type in TRIAL_TYPES),
            )
            pool = _named(pool, event, added=pool.added)
            return replace(pool, routes=(*pool.routes, route), phase=pool.phase if pool.added else "running")
        case u.RouteChanged(process_id=process_id, healthy=healthy):
            routes = tuple(
                replace(route, healthy=healthy) if route.process_id == process_id else route for route in pool.routes
            )
            return replace(pool, routes=routes)
        case u.RouteRemoved():
            return _without_route(pool, event)
        case u.RequestStarted():
            return _started(pool, event)
        case u.LeaseRenewed(request_id=request_id, expires_at=expires_at):
            request = pool.requests.get(request_id)
            renewed = {request_id: replace(request, expires_at=expires_at)} if request else {}
            return replace(pool, requests={**pool.requests, **renewed})
        case u.RequestCompleted():
            return _ended(pool, event, "")
        case u.RequestFailed():
            return _ended(pool, event, event.error_code)
        case u.RequestsRefused(count=count):
            return replace(pool, refused=pool.refused + count)
        case _:
            assert_never(event)


def _without_route(pool: Pool, event: u.RouteRemoved) -> Pool:
    process_id = event.process_id
    routes = tuple(route for route in pool.routes if route.process_id != process_id)
    ended = not (pool.added or routes) and pool.phase in ("starting", "running")
    route = pool.route(process_id)
    lost = (route.lost if route else 0) + pool.outstanding(process_id)
    crashed = (*pool.crashed, process_id)[-KEPT:] if event.crashed and lost == 1 else pool.crashed
    return msgspec.structs.replace(pool, routes=routes, phase="stopped" if ended else pool.phase, crashed=crashed)


def _named(pool: Pool, event: u.ServiceAdded | u.RouteAdded, *, added: bool) -> Pool:
    return msgspec.structs.replace(
        pool,
        service_name=event.service_name,
        model_id=event.model_id,
        model_name=event.model_name,
        type=event.type,
        added=added,
    )


def _started(pool: Pool, event: u.RequestStarted) -> Pool:
    process_id = event.process_id
    route = pool.route(process_id)
    routes = pool.routes
    if route and route.breaker.openings:
        breaker = route.breaker.started(event.request_id, event.started_at)
        routes = _with(routes, route, msgspec.structs.replace(route, breaker=breaker))
    return msgspec.structs.replace(
        pool,
        routes=routes,
        requests={**pool.requests, event.request_id: event},
        by_process={**pool.by_process, process_id: pool.outstanding(process_id) + 1},
        last_used=max(pool.last_used or 0.0, event.started_at),
    )


def _ended(pool: Pool, event: u.RequestCompleted | u.RequestFailed, code: str) -> Pool:
    requests = dict(pool.requests)
    started = requests.pop(event.request_id, None)
    if started is None:
        return pool
    process_id, at = started.process_id, started.started_at + event.duration
    by_process = {**pool.by_process, process_id: pool.outstanding(process_id) - 1}
    if not by_process[process_id]:
        del by_process[process_id]
    route = pool.route(process_id)
    return msgspec.structs.replace(
        pool,
        routes=_after_end(pool.routes, route, started, code, at) if route else pool.routes,
        requests=requests,
        by_process=by_process,
        last_used=max(pool.last_used or 0.0, at),
        settled=(*pool.settled, _settled(event.request_id, outcome_of(code)))[-_SETTLED_KEPT:],
    )


def _after_end(
    routes: tuple[Route, ...], route: Route, started: u.RequestStarted, code: str, at: float
) -> tuple[Route, ...]:
    """Return the routes after the end of a request on `route`."""
    breaker = route.breaker.ended(started.request_id, code, at, caller_of(started))
    answered_at = route.answered_at if code else max(at, route.answered_at)
    lost = route.lost + (code == "ENGINE_GONE") if code else 0
    return _with(routes, route, msgspec.structs.replace(route, breaker=breaker, answered_at=answered_at, lost=lost))


def _with(routes: tuple[Route, ...], old: Route, new: Route) -> tuple[Route, ...]:
    return tuple(new if route is old else route for route in routes)


def caller_of(request: u.RequestStarted) -> str:
    """Return the caller of a request: two requests with the same text may be from one caller."""
    return request.client if request.client == TRIAL else f"{request.owner}/{request.client}"


def outcome_of(code: str) -> u.Outcome:
    """Return the outcome for an error code. An empty code means that the request was answered."""
    if not code:
        return "completed"
    return "cancelled" if code == "CANCELLED" else "failed"


def _settled(request_id: str, outcome: u.Outcome) -> str:
    return f"{request_id} {outcome}"


def todo(pool: Pool) -> list[Sweep | TrySuspect]:
    """Return the effects of a pool.

    While requests are under way, an effect watches their leases. A suspect replica gets a trial request, but not while
    its breaker is open, and not within `_TRY_AGAIN` seconds after an answer.
    """
    trials = (
        TrySuspect(pool.service_id, route.process_id, max(route.breaker.open_until, route.answered_at + _TRY_AGAIN))
        for route in pool.routes
        if route.healthy and route.breaker.suspect
    )
    return [*([Sweep(pool.service_id)] if pool.requests else []), *trials]
