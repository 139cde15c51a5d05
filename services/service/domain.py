"""The service domain, assembled: read this first.

A service is a model behind a name, with replicas that share the load. `units.py` is its contract. `rules/` is pure:

    lifecycle          the statuses of a service and of a replica, as tables
    state, todo        what a service is, and what it calls for outside
    decider            what may happen at somebody's request
    replica_decider    what may happen to replicas; restart_policy says when a failed one is started again
    selection          which engine and device; scaling: how many replicas; recommendation: what would be best

`outside/` is all that awaits: `adapter` is the way in, `start_facts` and `memory` gather what a start needs,
`replica_effects` asks the engine domain for replicas, `reconciler` watches load and idleness.
"""

from __future__ import annotations

from aima_core.domain import Domain
from aima_core.units import Resource
from services.engine import units as engine
from services.service import internal as i
from services.service import units as u
from services.service.outside.adapter import ServiceOutside, react
from services.service.rules.decider import decide
from services.service.rules.replies import reply
from services.service.rules.state import Service, evolve
from services.service.rules.todo import todo
from services.service.rules.views import TABLES, project
from services.service.settings import ServiceSettings

SERVICE = Domain(
    name="service",
    about="Long-running model services - replicas of one model behind one name.",
    state=Service,
    events=u.EVENTS,
    commands=(u.CreateService, u.DeleteService, u.StartService, u.StopService, u.ScaleService),
    internal=(
        i.Register,
        i.BeginStart,
        i.BeginScale,
        i.PutToSleep,
        i.RecordReplicaProgress,
        i.RecordReplicaReady,
        i.RecordReplicaHealth,
        i.RecordReplicaFailed,
        i.RecordReplicaEnded,
        i.RecordTimedOut,
    ),
    queries=(u.GetService, u.ListServices, u.GetStatus, u.GetLogs, u.GetHistory, u.Recommend),
    resources=(
        Resource(
            uri="asms://service/{id}",
            about="A service.",
            query=lambda ident: u.GetService(service_id=ident or ""),
            touched=lambda event: [event.service_id],
        ),
        Resource(
            uri="asms://services",
            about="All services.",
            query=lambda _: u.ListServices(limit=1000),
            touched=lambda event: [event.service_id],
        ),
    ),
    decide=decide,
    evolve=evolve,
    todo=todo,
    reply=reply,
    tables=TABLES,
    project=project,
    follows={
        "engine": (
            engine.StartProgress,
            engine.EngineStarted,
            engine.HealthChanged,
            engine.EngineError,
            engine.EngineStopped,
        )
    },
    react=react,
    outside=ServiceOutside,
    settings=ServiceSettings,
)
