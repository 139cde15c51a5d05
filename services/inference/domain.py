"""The inference domain, assembled: read this first.

`decider.py` knows where requests may go and which are under way; `outside.py` carries them, in the dialects that
engines speak (`openai.py`), as each kind of request asks it (`tasks.py`).
"""

from __future__ import annotations

from aima_core.domain import Domain
from aima_core.units import Resource
from services.inference import units as u
from services.inference.decider import Pool, decide, evolve, reply, todo
from services.inference.outside import InferenceOutside, react
from services.inference.tasks import TASKS
from services.inference.views import TABLES, project
from services.service import units as service

INFERENCE = Domain(
    name="inference",
    about="Requests to running models. Routes each request to a healthy replica of the model's service.",
    state=Pool,
    events=u.EVENTS,
    commands=(*TASKS, u.LeaseModel, u.Settle),
    internal=(u.BeginRequest, u.RecordExpired, u.RecordRoute, u.RecordHealth, u.RecordNoRoute),
    queries=(u.ListServed, u.ListVoices),
    resources=(
        Resource(
            uri="asms://inference/models",
            about="Models that have services.",
            query=lambda _: u.ListServed(),
            touched=lambda event: (
                [event.unit] if isinstance(event, u.RouteAdded | u.RouteChanged | u.RouteRemoved) else []
            ),
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
            service.ReplicaStarted,
            service.ReplicaHealthChanged,
            service.ReplicaFailed,
            service.ReplicaEnded,
            service.StopRequested,
            service.ServiceFailed,
        )
    },
    react=react,
    outside=InferenceOutside,
)
