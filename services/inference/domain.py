"""Assembles the inference domain. Read this file first.

The domain routes requests to the replicas of services. `units.py` is the contract. `rules/` is pure:

    state              the services, their replicas and the requests under way
    breaker, crashes   decide whether a replica or a request is at fault
    routing            chooses the replica for a request, or the reason for its refusal
    decider            decides commands
    views, statistics  the read tables of figures, and the answers of queries

`outside/` is the I/O:

    placement          the replica for each request, with `admission` (queues), `wakeups` (services that sleep) and
                       `refusals`
    engine_requests    sends a request to an engine and settles it
    trials             small requests that show whether a replica answers
    figures            the answers of queries
    adapter            the entry point
"""

from __future__ import annotations

from aima_core.domain import Domain
from aima_core.units import Resource
from services.inference import internal as i
from services.inference import units as u
from services.inference.outside.adapter import InferenceOutside, react
from services.inference.rules.decider import decide, reply, resolve
from services.inference.rules.state import Pool, evolve, todo
from services.inference.rules.views import TABLES, project
from services.inference.settings import InferenceSettings
from services.service import units as service

_LISTED = (u.ServiceAdded, u.ServiceRemoved, u.RouteAdded, u.RouteChanged, u.RouteRemoved)

INFERENCE = Domain(
    name="inference",
    about="Requests to running models. Routes each request to a healthy replica of the model's service.",
    state=Pool,
    events=u.EVENTS,
    commands=u.COMMANDS,
    internal=i.COMMANDS,
    queries=u.QUERIES,
    resources=(
        Resource(
            uri="asms://inference/models",
            about="The models that have services.",
            query=lambda _: u.ListServed(),
            touched=lambda event: [event.unit] if isinstance(event, _LISTED) else [],
        ),
    ),
    resolve=resolve,
    decide=decide,
    evolve=evolve,
    todo=todo,
    reply=reply,
    tables=TABLES,
    project=project,
    follows={
        "service": (
            service.ServiceCreated,
            service.StartRequested,
            service.ReplicaStarted,
            service.ReplicaHealthChanged,
            service.ReplicaLeaving,
            service.ReplicaFailed,
            service.ReplicaEnded,
            service.ServiceStarted,
            service.ServiceFailed,
            service.StopRequested,
            service.ServiceStopped,
            service.ServiceDeleted,
        )
    },
    react=react,
    outside=InferenceOutside,
    settings=InferenceSettings,
)
