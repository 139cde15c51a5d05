"""The inference domain, assembled: read this first.

`state.py` knows the services, their replicas and the requests under way; `routing.py` says where one may go,
`decider.py` what happens to it. `placing.py` lets it wait for its turn (`admission.py`), wakes the service that it
needs (`waking.py`) or turns it away (`refusals.py`); `outside.py` carries it, in the dialects that engines speak
(`openai.py`), as each kind of request asks it (`tasks.py`). `views.py` counts and measures, `figures.py` tells what
that comes to.
"""

from __future__ import annotations

from aima_core.domain import Domain
from aima_core.units import Resource
from services.inference import internal as i
from services.inference import units as u
from services.inference.decider import decide, reply
from services.inference.outside import InferenceOutside, react
from services.inference.settings import InferenceSettings
from services.inference.state import Pool, evolve, todo
from services.inference.tasks import TASKS
from services.inference.views import TABLES, project
from services.service import units as service

_LISTED = (u.ServiceAdded, u.ServiceRemoved, u.RouteAdded, u.RouteChanged, u.RouteRemoved)

INFERENCE = Domain(
    name="inference",
    about="Requests to running models. Routes each request to a healthy replica of the model's service.",
    state=Pool,
    events=u.EVENTS,
    commands=(*TASKS, u.LeaseModel, u.Renew, u.Settle),
    internal=(
        i.BeginRequest,
        i.RecordExpired,
        i.RecordRefused,
        i.RecordService,
        i.RecordRemoved,
        i.RecordPhase,
        i.RecordRoute,
        i.RecordHealth,
        i.RecordNoRoute,
    ),
    queries=(u.ListServed, u.ListVoices, u.GetLoad, u.GetMetrics, u.GetSpeeds),
    resources=(
        Resource(
            uri="asms://inference/models",
            about="Models that have services.",
            query=lambda _: u.ListServed(),
            touched=lambda event: [event.unit] if isinstance(event, _LISTED) else [],
        ),
    ),
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
