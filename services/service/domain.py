"""The service domain, assembled: read this first.

A service is a model behind a name. `lifecycle.py` has its statuses as tables, `state.py` what it is and what it calls
for, `decider.py` what may happen to it at somebody's request, `replicas.py` what happens to its replicas, `healing.py`
when they are started again. `selection.py` chooses engine and device, `scaling.py` the number of replicas,
`recommend.py` says what would be best. `outside.py` is all that awaits: `start_facts.py` and `room.py` look up what a
start needs, `performing.py` asks the engine domain for the replicas, `keeper.py` watches their load.
"""

from __future__ import annotations

from aima_core.domain import Domain
from aima_core.units import Resource
from services.engine import units as engine
from services.service import internal as i
from services.service import units as u
from services.service.decider import decide
from services.service.outside import ServiceOutside, react
from services.service.replies import reply
from services.service.settings import ServiceSettings
from services.service.state import Service, evolve
from services.service.todo import todo
from services.service.views import TABLES, project

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
