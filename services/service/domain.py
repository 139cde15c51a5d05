"""Assembles the service domain. Read this file first.

A service is a model behind a name, with replicas that share the load. `units.py` is its contract. `rules/` is pure:

    lifecycle          the state machines of a service and of a replica, as tables
    state, todo        the state of a service, and the effects that follow from it
    decider            decides commands about a whole service
    replica_decider    decides what happens to replicas
    restart_policy     decides when a failed replica is restarted
    selection          chooses engine and device
    scaling            chooses the number of replicas
    recommendation     chooses the best setup
    views, replies     the views of states and the answers of commands

`outside/` is the I/O. `adapter` is its entry point. `start_facts` and `memory` gather the facts of a
start. `replica_effects` starts and ends replicas. `reconciler` follows the load and puts idle services to sleep.
"""

from __future__ import annotations

from aima_core.domain import Domain
from aima_core.units import Resource
from services.engine import units as engine
from services.service import internal as i
from services.service import units as u
from services.service.outside.adapter import ServiceOutside, react
from services.service.rules.decider import decide, resolve
from services.service.rules.replies import reply
from services.service.rules.state import Service, evolve
from services.service.rules.todo import todo
from services.service.rules.views import TABLES, project
from services.service.settings import ServiceSettings

SERVICE = Domain(
    name="service",
    about="Services: each runs replicas of one model behind one name.",
    state=Service,
    events=u.EVENTS,
    commands=u.COMMANDS,
    internal=i.COMMANDS,
    queries=u.QUERIES,
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
    resolve=resolve,
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
