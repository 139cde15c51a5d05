"""The state of a service's replicas and requests, and the changes that events make. Pure."""

from __future__ import annotations

from typing import assert_never

import msgspec

from aima_core.domain import Effect
from services.inference import units as u

BLAMED = frozenset({"ENGINE_GONE", "ENGINE_FAILED", "BAD_ANSWER", "EXECUTION_FAILED", "NO_ANSWER"})
_MAX_FAILURES = 3  # number of failures in a row that open a breaker
_FIRST_OPEN, _MAX_OPEN = 5.0, 60.0  # seconds that a breaker stays open; each failed trial doubles them
_TRIAL_TIMEOUT = _MAX_OPEN  # seconds until a second request may be a trial, because a lease may take an hour
_SETTLED_KEPT = 1000  # latest settlements that are kept, so a repeated settlement is idempotent


class Breaker(msgspec.Struct, frozen=True):
    """Keeps requests away from a replica that fails them.

    A breaker is closed, open for some seconds after several failures, or half-open: it lets one trial request through.
    `failures` counts failures in a row; `openings` counts openings since the last answer. `open_until` is in Unix
    seconds. `trial` is the id of the request that tests the replica since `trial_at`.
    """

    failures: int = 0
    openings: int = 0
    open_until: float = 0.0
    trial: str = ""
    trial_at: float = 0.0

    def state(self, at: float) -> u.BreakerState:
        if not self.openings:
            return "closed"
        return "open" if at < self.open_until else "half_open"

    def lets_through(self, at: float) -> bool:
        """Whether one more request may go to the replica."""
        if not self.openings:
            return True
        return at >= self.open_until and (not self.trial or at >= self.trial_at + _TRIAL_TIMEOUT)

    def started(self, request_id: str, at: float) -> Breaker:
        """Return the breaker after a request has started. If the breaker is half-open, the request is its trial."""
        return msgspec.structs.replace(self, trial=request_id, trial_at=at) if self.openings else self

    def ended(self, request_id: str, code: str, at: float) -> Breaker:
        """Return the breaker after the end of a request. An empty code means that the request was answered."""
        if not code:
            return Breaker()
        trial, since = ("", 0.0) if self.trial == request_id else (self.trial, self.trial_at)
        if code not in BLAMED:
            return msgspec.structs.replace(self, trial=trial, trial_at=since)
        failures = self.failures + 1
        if failures < _MAX_FAILURES or at < self.open_until:  # earlier requests do not prolong the opening
            return Breaker(failures, self.openings, self.open_until, trial, since)
        seconds = min(_FIRST_OPEN * 2.0 ** min(self.openings, 10), _MAX_OPEN)
        return Breaker(failures, self.openings + 1, at + seconds, trial, since)


class Route(msgspec.Struct, frozen=True):
    """A replica. It is `healthy` if it answers its health check. It works on `slots` requests at once; 0: unknown.

    With `cancels_whole`, the engine stops when the client leaves, even if the answer is not streamed.
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


class Pool(msgspec.Struct, frozen=True):
    """A service, its replicas and the requests under way on them.

    - `added`: the service exists. Logs of older releases have no event for this and have only routes.
    - `begun`: the service was started at least once.
    - `by_process`: requests under way per process, including processes that get no new requests.
    - `settled`: the latest settlements as "id outcome".
    - `last_used`: in Unix seconds.
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

    def serves(self, name: str) -> bool:
        """Whether `name` is a name or id of this service or of its model."""
        return name in (self.service_id, self.service_name, self.model_id, self.model_name)

    def outstanding(self, process_id: str) -> int:
        """Return the number of requests under way on a replica."""
        return self.by_process.get(process_id, 0)

    def has_room(self, route: Route) -> bool:
        """Whether a replica has a free slot."""
        return not route.slots or self.outstanding(route.process_id) < route.slots

    def route(self, process_id: str) -> Route | None:
        return next((route for route in self.routes if route.process_id == process_id), None)

    def has_settled(self, request_id: str, outcome: u.Outcome) -> bool:
        """Whether this request is among the latest settlements, with this outcome."""
        return _settled(request_id, outcome) in self.settled


def carried_here(request: u.RequestStarted) -> bool:
    """Whether the inference domain itself sends the request to the engine. Otherwise, a lease holder does."""
    return bool(request.holder) and not request.holder.startswith(u.GATEWAY)


class Sweep(Effect, frozen=True):
    """Fail the requests of a service whose leases have expired."""

    service_id: str


def evolve(pool: Pool | None, event: u.Events) -> Pool | None:
    """Return the pool after the event, or None if it has no service, no routes and no requests. Never raises."""
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
            )
            pool = _named(pool, event, added=pool.added)
            return replace(pool, routes=(*pool.routes, route), phase=pool.phase if pool.added else "running")
        case u.RouteChanged(process_id=process_id, healthy=healthy):
            routes = tuple(
                replace(route, healthy=healthy) if route.process_id == process_id else route for route in pool.routes
            )
            return replace(pool, routes=routes)
        case u.RouteRemoved(process_id=process_id):
            routes = tuple(route for route in pool.routes if route.process_id != process_id)
            lost = not (pool.added or routes) and pool.phase in ("starting", "running")
            return replace(pool, routes=routes, phase="stopped" if lost else pool.phase)
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
    return msgspec.structs.replace(
        pool,
        routes=_with(pool.routes, process_id, route.breaker.started(event.request_id, event.started_at))
        if route
        else pool.routes,
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
        routes=_with(pool.routes, process_id, route.breaker.ended(event.request_id, code, at))
        if route
        else pool.routes,
        requests=requests,
        by_process=by_process,
        last_used=max(pool.last_used or 0.0, at),
        settled=(*pool.settled, _settled(event.request_id, outcome_of(code)))[-_SETTLED_KEPT:],
    )


def _with(routes: tuple[Route, ...], process_id: str, breaker: Breaker) -> tuple[Route, ...]:
    return tuple(
        msgspec.structs.replace(route, breaker=breaker)
        if route.process_id == process_id and route.breaker != breaker
        else route
        for route in routes
    )


def outcome_of(code: str) -> u.Outcome:
    """Return the outcome for an error code. An empty code means that the request was answered."""
    if not code:
        return "completed"
    return "cancelled" if code == "CANCELLED" else "failed"


def _settled(request_id: str, outcome: u.Outcome) -> str:
    return f"{request_id} {outcome}"


def todo(pool: Pool) -> list[Sweep]:
    """Return the effects of a pool. While requests are under way, an effect watches their leases."""
    return [Sweep(pool.service_id)] if pool.requests else []
