"""Chooses the replica for a request, or the refusal of the request. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import ceil

from aima_core.domain import World
from aima_core.errors import AimaError, EngineNotRunning, Unavailable, ValidationFailed
from aima_core.suggestions import find_named, plain_name
from services.inference import internal as i
from services.inference import units as u
from services.inference.rules.state import Pool, Route

BUSY: u.Obstacle = "BUSY"  # the replica works on as many requests as it can
LOADING: u.Obstacle = "LOADING"  # the service starts, sleeps, or gets a new replica
OPEN: u.Obstacle = "OPEN"  # the replica's breaker is open
UNHEALTHY: u.Obstacle = "UNHEALTHY"  # the replica does not answer its health check, and works on no request
_REPLACED = 5  # seconds; `retry_after` while an unhealthy replica is checked again or replaced


@dataclass(frozen=True)
class _Obstacle:
    """Why a service or a replica takes no request. `seconds`: when that may change; None if unknown."""

    reason: u.Obstacle
    text: str
    seconds: float | None = None


def choose(world: World[Pool], request: i.BeginRequest, at: float) -> tuple[Pool, Route]:
    """Return the free replica with the fewest requests under way per slot, and its service.

    The name in the request may match several services. The replicas of all of them are candidates. Raises Unavailable
    with a reason of OBSTACLES if waiting may help, and otherwise EngineNotRunning or ValidationFailed.
    """
    name, pools = request.model, fitting(world.values(), request.model, request.types)
    healthy = [(pool, route) for pool in pools for route in pool.routes if route.healthy]
    able = [candidate for candidate in healthy if candidate[1].tools or not request.needs_tools]
    if healthy and not able:
        raise ValidationFailed(
            f"tools: the chat template of {name} does not support tools",
            fields=[{"field": "tools", "expected": "none: the model's chat template does not support tools"}],
        )
    free = [(pool, route) for pool, route in able if _open_to(request, route, at) and pool.has_room(route)]
    if not free:
        raise _refusal(request, pools, at)
    preferred = [candidate for candidate in free if candidate[1].process_id != request.avoid]
    return min(preferred or free, key=_load_per_slot)


def _open_to(request: i.BeginRequest, route: Route, at: float) -> bool:
    """Whether a healthy replica takes this request as soon as it has a free slot."""
    if request.only:
        return route.process_id == request.only
    return route.breaker.lets_through(at) and not (request.strictly and route.process_id == request.avoid)


def fitting(pools: Iterable[Pool], name: str, types: Sequence[str]) -> list[Pool]:
    """Return the services that `name` matches and whose model has one of these types. No types means any type.

    Raises ValidationFailed if all services that `name` matches have models of other types.
    """
    matches = serving(pools, name)
    fit = [pool for pool in matches if not types or pool.type in types]
    if matches and not fit:
        kinds = " or ".join(types)
        raise ValidationFailed(
            f"model: {name} is of type {matches[0].type}; this request needs {kinds}",
            fields=[{"field": "model", "expected": f"a model of type {kinds}"}],
        )
    return fit


def serving(pools: Iterable[Pool], name: str) -> list[Pool]:
    """Return the services that `name` means: one service, or all services of a model. See `find_named`."""
    listed = list(pools)
    if exact := [pool for pool in listed if pool.serves(name)]:
        return exact
    names: dict[str, list[str]] = {}
    for pool in listed:
        names.setdefault(pool.model_id, []).extend(pool.names)
    model_id = find_named(name, names, "model")
    folded = plain_name(name)
    return [pool for pool in listed if pool.model_id == model_id and folded in map(plain_name, pool.names)]


def hopeful(pool: Pool) -> bool:
    """Whether the service can get a replica: it runs, it starts, or it sleeps until a request wakes it."""
    return coming(pool) or pool.phase == "asleep"


def coming(pool: Pool) -> bool:
    """Whether the service is running or starting."""
    return pool.phase in ("starting", "running")


def sleeper(pools: Collection[Pool], refused: Collection[str] = ()) -> str | None:
    """Return the sleeping service to wake for a request that each of these services can serve.

    Returns None if any of them is running or starting, or if none sleeps. Returns a service in `refused`, whose start
    was just refused, only if no other service sleeps.
    """
    if any(coming(pool) for pool in pools):
        return None
    asleep = [pool.service_id for pool in pools if pool.phase == "asleep"]
    return next((ident for ident in asleep if ident not in refused), asleep[0] if asleep else None)


def _load_per_slot(candidate: tuple[Pool, Route]) -> float:
    pool, route = candidate
    return pool.outstanding(route.process_id) / max(route.slots, 1)


def _refusal(request: i.BeginRequest, pools: Sequence[Pool], at: float) -> AimaError:
    name, services = request.model, [pool.service_id for pool in pools]
    waking = [pool for pool in pools if hopeful(pool) or pool.routes]
    if waking:
        obstacles = [obstacle for pool in waking for obstacle in _obstacles(pool, request, at)]
        first = min(obstacles, key=lambda obstacle: u.OBSTACLES.index(obstacle.reason))
        seconds = [o.seconds for o in obstacles if o.reason == first.reason and o.seconds is not None]
        wait = {"retry_after": max(ceil(min(seconds)), 1)} if seconds else {}
        texts = "; ".join(_described(pool, request, at) for pool in waking)
        return Unavailable(f"no replica for {name}: {texts}", reason=first.reason, services=services, **wait)
    failed = next((pool for pool in pools if pool.phase == "failed"), None)
    if failed:
        return EngineNotRunning(
            f"no running replica serves {name}: service {failed.service_id} has failed"
            f"{f': {failed.error}' if failed.error else ''};"
            " see service.status, then start it again with service.start",
            reason="NO_REPLICA",
            model=name,
            services=services,
            error_code=failed.error_code,
        )
    if pools:
        states = ", ".join(
            f"service {pool.service_id} {'is stopped' if pool.begun else 'was never started'}" for pool in pools
        )
        situation = f": {states}; start {'it' if len(pools) == 1 else 'one'} with service.start"
    else:
        situation = ": it has no service; create one with service.create and start it with service.start"
    return EngineNotRunning(
        f"no running replica serves {name}{situation}",
        reason="NO_REPLICA" if services else "NO_SERVICE",
        model=name,
        services=services,
    )


def _obstacles(pool: Pool, request: i.BeginRequest, at: float) -> list[_Obstacle]:
    """Return why a service that runs, starts or sleeps takes no request: one obstacle for each replica."""
    if pool.routes:
        return [_obstacle(pool, route, request, at) for route in pool.routes]
    match pool.phase:
        case "asleep":
            return [_Obstacle(LOADING, "is asleep; requests wake it")]
        case "starting":
            return [_Obstacle(LOADING, "is starting and has no running replica yet")]
        case _:
            return [_Obstacle(LOADING, "has no running replica at the moment; AIMA replaces failed replicas")]


def _described(pool: Pool, request: i.BeginRequest, at: float) -> str:
    service, count = f"service {pool.service_id}", len(pool.routes)
    texts = Counter(obstacle.text for obstacle in _obstacles(pool, request, at))
    if not count:
        return f"{service} {next(iter(texts))}"
    if count == 1:
        return f"the only replica of {service} is {next(iter(texts))}"
    listed = ", ".join(f"{number} {text}" for text, number in texts.items())
    return f"none of the {count} replicas of {service} takes requests: {listed}"


def _obstacle(pool: Pool, route: Route, request: i.BeginRequest, at: float) -> _Obstacle:
    """Return why a replica takes no request."""
    breaker, outstanding = route.breaker, pool.outstanding(route.process_id)
    if not route.healthy and (pool.busy_until(route.process_id) or 0.0) > at:
        return _Obstacle(BUSY, f"busy (its health check gets no reply while it works on {_requests(outstanding)})")
    if not route.healthy:
        return _Obstacle(UNHEALTHY, "unhealthy (no reply to its health check)", _REPLACED)
    if request.needs_tools and not route.tools:
        return _Obstacle(LOADING, "without support for tools")
    if not request.only and not breaker.lets_through(at):
        seconds = max(breaker.open_until - at, 0.1)
        test = f"next trial in {seconds:.1f} s" if at < breaker.open_until else "until a trial request succeeds"
        return _Obstacle(OPEN, f"paused after {breaker.failures} failed requests in a row ({test})", seconds)
    if request.strictly and route.process_id == request.avoid:
        return _Obstacle(LOADING, "avoided for a moment (it has just failed this request)")
    slots = f"{outstanding} of {route.slots} slots in use" if route.slots else _requests(outstanding)
    return _Obstacle(BUSY, f"busy ({slots})")


def _requests(number: int) -> str:
    return "1 request" if number == 1 else f"{number} requests"
