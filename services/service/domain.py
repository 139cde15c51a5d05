"""The service domain, assembled: read this first.

A service is a model behind a name. `state.py` says what it is and what it calls for, `decider.py` what may happen
to it; `outside.py` asks the engine domain for its replicas and hears how they fare.
"""

from __future__ import annotations

from aima_core.domain import Domain
from aima_core.units import Resource
from services.engine import units as engine
from services.service import units as u
from services.service.decider import decide
from services.service.outside import ServiceOutside, react
from services.service.state import Service, evolve, todo
from services.service.views import TABLES, project, reply

SERVICE = Domain(
    name="service",
    about="Long-running model services - replicas of one model behind one name.",
    state=Service,
    events=u.EVENTS,
    commands=(u.CreateService, u.DeleteService, u.StartService, u.StopService),
    internal=(
        u.Register,
        u.BeginStart,
        u.RecordReplicaProgress,
        u.RecordReplicaReady,
        u.RecordReplicaHealth,
        u.RecordReplicaFailed,
        u.RecordReplicaEnded,
        u.RecordTimedOut,
    ),
    queries=(u.GetService, u.ListServices, u.GetStatus, u.GetLogs, u.GetHistory),
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
)
