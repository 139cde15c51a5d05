"""Chooses the replica for a request, or the refusal of the request. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from aima_core.domain import World
from aima_core.errors import AimaError, EngineNotRunning, Unavailable, ValidationFailed
from services.inference import internal as i
from services.inference.rules.state import Pool, Route

BUSY, LOADING = "BUSY", "LOADING"  # a request may wait if it is refused for one of these reasons


def choose(world: World[Pool], request: i.BeginRequest, at: float) -> tuple[Pool, Route]:
    """Return the replica with the fewest requests under way per slot.

    The name in the request may match several services. The replicas of all of them are candidates. Raises Unavailable
    (BUSY, LOADING) if waiting may help, and otherwise EngineNotRunning or ValidationFailed.
    """
    name, pools = request.model, fitting(world.values(), request.model, request.types)
    healthy = [(pool, route) for pool in pools for route in pool.routes if route.healthy]
    able = [candidate for candidate in healthy if candidate[1].tools or not request.needs_tools]
    if healthy and not able:
        raise ValidationFailed(
            f"tools: the chat template of {name} does not support tools",
            fields=[{"field": "tools", "expected": "none: the model's chat template does not support tools"}],
        )
    usable = [
        (pool, route)
        for pool, route in able
        if route.breaker.lets_through(at) and not (request.strictly and route.process_id == request.avoid)
    ]
    free = [(pool, route) for pool, route in usable if pool.has_room(route)]
    if not free:
        raise _refusal(request, pools, at, busy=bool(usable))
    preferred = [candidate for candidate in free if candidate[1].process_id != request.avoid]
    return min(preferred or free, key=_load_per_slot)


def fitting(pools: Iterable[Pool], name: str, types: Sequence[str]) -> list[Pool]:
    """Return the services with this name whose model has one of these types. No types means any type.

    Raises ValidationFailed if all services with this name have models of other types.
    """
    matches = [pool for pool in pools if pool.serves(name)]
    fit = [pool for pool in matches if not types or pool.type in types]
    if matches and not fit:
        kinds = " or ".join(types)
        raise ValidationFailed(
            f"model: {name} is of type {matches[0].type}; this request needs {kinds}",
            fields=[{"field": "model", "expected": f"a model of type {kinds}"}],
        )
    return fit


def hopeful(pool: Pool) -> bool:
    """Whether the service can get a replica: it runs, it starts, or it sleeps until a request wakes it."""
    return coming(pool) or pool.phase == "asleep"


def coming(pool: Pool) -> bool:
    """Whether the service is running or starting."""
    return pool.phase in ("starting", "running")


def sleeper(pools: Collection[Pool], refused: Collection[str] = ()) -> str | None:
    """Return the service to wake for a request that each of these services can serve. None if one runs or starts.

    A service whose start was just `refused` is returned only if no other service sleeps.
    """
    if any(coming(pool) for pool in pools):
        return None
    asleep = [pool.service_id for pool in pools if pool.phase == "asleep"]
    return next((ident for ident in asleep if ident not in refused), asleep[0] if asleep else None)


def _load_per_slot(candidate: tuple[Pool, Route]) -> float:
    pool, route = candidate
    return pool.outstanding(route.process_id) / max(route.slots, 1)


def _refusal(request: i.BeginRequest, pools: Sequence[Pool], at: float, *, busy: bool) -> AimaError:
    name, services = request.model, [pool.service_id for pool in pools]
    waking = [pool for pool in pools if hopeful(pool)]
    if busy or waking:
        reason = BUSY if busy else LOADING
        obstacles = "; ".join(_obstacle(pool, request, at) for pool in waking or pools)
        return Unavailable(f"no replica for {name}: {obstacles}", reason=reason, services=services)
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
        obstacles = ", ".join(
            f"service {pool.service_id} {'is stopped' if pool.begun else 'was never started'}" for pool in pools
        )
        situation = f": {obstacles}; start {'it' if len(pools) == 1 else 'one'} with service.start"
    else:
        situation = ": it has no service; create one with service.create and start it with service.start"
    return EngineNotRunning(
        f"no running replica serves {name}{situation}",
        reason="NO_REPLICA" if services else "NO_SERVICE",
        model=name,
        services=services,
    )


def _obstacle(pool: Pool, request: i.BeginRequest, at: float) -> str:
    """Return the reason why a service that runs, starts or sleeps takes no request."""
    service, count = f"service {pool.service_id}", len(pool.routes)
    if not count:
        match pool.phase:
            case "asleep":
                return f"{service} is asleep; requests wake it"
            case "starting":
                return f"{service} is starting and has no running replica yet"
            case _:
                return f"{service} has no running replica at the moment; AIMA replaces those that failed"
    states = Counter(_state(pool, route, request, at) for route in pool.routes)
    if count == 1:
        return f"the only replica of {service} is {next(iter(states))}"
    listed = ", ".join(f"{number} {state}" for state, number in states.items())
    return f"none of the {count} replicas of {service} takes requests: {listed}"


def _state(pool: Pool, route: Route, request: i.BeginRequest, at: float) -> str:
    """Return the reason why a replica takes no request."""
    breaker = route.breaker
    if not route.healthy:
        return "unhealthy (no reply to its health check)"
    if request.needs_tools and not route.tools:
        return "without support for tools"
    if not breaker.lets_through(at):
        test = (
            f"next attempt in {max(breaker.open_until - at, 0.1):.1f} s"
            if at < breaker.open_until
            else "one request is testing it"
        )
        return f"paused after {breaker.failures} failed requests in a row ({test})"
    if request.strictly and route.process_id == request.avoid:
        return "avoided for a moment (it has just failed this request)"
    return f"busy ({pool.outstanding(route.process_id)} of {route.slots} slots in use)"
