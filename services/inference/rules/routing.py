"""Which replica a request goes to, and what to say when there is none for it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from aima_core.domain import World
from aima_core.errors import AimaError, EngineNotRunning, Unavailable, ValidationFailed
from services.inference import internal as i
from services.inference.rules.state import Pool, Route

BUSY, LOADING = "BUSY", "LOADING"  # the reasons for which a request may wait


def choose(world: World[Pool], request: i.BeginRequest, at: float) -> tuple[Pool, Route]:
    """Return the replica with the fewest requests under way for what it takes, among all services that are meant.

    Raises Unavailable (BUSY, LOADING) when there may be one later, EngineNotRunning or ValidationFailed otherwise.
    """
    name, pools = request.model, fitting(world.values(), request.model, request.types)
    healthy = [(pool, route) for pool in pools for route in pool.routes if route.healthy]
    able = [choice for choice in healthy if choice[1].tools or not request.needs_tools]
    if healthy and not able:
        raise ValidationFailed(
            f"tools: the chat template of {name} takes no tools",
            fields=[{"field": "tools", "expected": "none: the model's chat template does not know tools"}],
        )
    usable = [
        (pool, route)
        for pool, route in able
        if route.breaker.lets_through(at) and not (request.strictly and route.process_id == request.avoid)
    ]
    free = [(pool, route) for pool, route in usable if pool.has_room(route)]
    if not free:
        raise _refusal(name, pools, busy=bool(usable))
    return min([choice for choice in free if choice[1].process_id != request.avoid] or free, key=_burden)


def fitting(pools: Iterable[Pool], name: str, types: Sequence[str]) -> list[Pool]:
    """Return the services that a name means and that are of one of these types, none standing for any.

    Raises ValidationFailed for a name that means only services of other types.
    """
    meant = [pool for pool in pools if pool.serves(name)]
    fit = [pool for pool in meant if not types or pool.type in types]
    if meant and not fit:
        kinds = " or ".join(types)
        raise ValidationFailed(
            f"model: {name} is of type {meant[0].type}; this needs {kinds}",
            fields=[{"field": "model", "expected": f"a model of type {kinds}"}],
        )
    return fit


def hopeful(pool: Pool) -> bool:
    """Whether the service will have a replica by itself, or when it is asked for."""
    return coming(pool) or pool.phase == "asleep"


def coming(pool: Pool) -> bool:
    """Whether the service has replicas, or is on its way to have some."""
    return pool.phase in ("starting", "running")


def sleeper(pools: Collection[Pool], refused: Collection[str] = ()) -> str | None:
    """Return the service to wake for a request that could go to any of these; None while another is on its way.

    One that has just been `refused` is asked again only if there is no other.
    """
    if any(coming(pool) for pool in pools):
        return None
    asleep = [pool.service_id for pool in pools if pool.phase == "asleep"]
    return next((ident for ident in asleep if ident not in refused), asleep[0] if asleep else None)


def _burden(choice: tuple[Pool, Route]) -> float:
    pool, route = choice
    return pool.outstanding(route.process_id) / max(route.slots, 1)


def _refusal(name: str, pools: Sequence[Pool], *, busy: bool) -> AimaError:
    services = [pool.service_id for pool in pools]
    if busy:
        return Unavailable(f"every replica of {name} has as many requests as it takes", reason=BUSY, services=services)
    if any(hopeful(pool) for pool in pools):
        return Unavailable(f"no replica of {name} takes requests yet", reason=LOADING, services=services)
    failed = next((pool for pool in pools if pool.phase == "failed"), None)
    if failed:
        return EngineNotRunning(
            f"no running engine serves {name}: its service {failed.service_id} has failed"
            f"{f': {failed.error}' if failed.error else ''}; look at service.status",
            reason="NO_REPLICA",
            model=name,
            services=services,
            error_code=failed.error_code,
        )
    if pools:
        how = "stopped" if pools[0].begun else "not started yet"
        told = f": its service {services[0]} is {how}; start it (service.start)"
    else:
        told = "; start a service for it (service.create, service.start)"
    return EngineNotRunning(
        f"no running engine serves {name}{told}",
        reason="NO_REPLICA" if services else "NO_SERVICE",
        model=name,
        services=services,
    )
