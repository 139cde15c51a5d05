"""The engine domain, assembled: read this first.

A file in `manifests/` describes an engine. Each process of an engine is an instance, with a stream of events.
`units.py` is the contract. `rules/` is pure: `state` defines an instance and its effects, `decider` decides commands.
`outside/` does I/O: `instances` reserves memory, starts, watches and ends instances; `packages` installs engines.
`runtimes/` starts and finds processes. `llamacpp_server` is the program of the built-in engine llama.cpp.
"""

from __future__ import annotations

from aima_core.domain import Domain
from aima_core.units import Resource
from services.engine import internal as i
from services.engine import units as u
from services.engine.manifests.manifest import load_manifests
from services.engine.outside.adapter import EngineOutside, react
from services.engine.rules.decider import decide
from services.engine.rules.replies import reply
from services.engine.rules.state import InstanceState, evolve, todo
from services.engine.rules.views import TABLES, project
from services.engine.settings import EngineSettings
from services.resource import units as resource

ENGINE = Domain(
    name="engine",
    about="Inference engines, such as llama.cpp, and their running processes.",
    state=InstanceState,
    events=u.EVENTS,
    commands=u.COMMANDS,
    internal=i.COMMANDS,
    queries=u.QUERIES,
    resources=(
        Resource(
            uri="asms://engine/{id}",
            about="An engine and its instances.",
            query=lambda name: u.GetEngine(name=name or ""),
            touched=lambda event: [event.name] if hasattr(event, "name") else [],
            ids=lambda _: load_manifests([]),  # an engine exists before its first event
        ),
        Resource(
            uri="asms://engines/status",
            about="All engines.",
            query=lambda _: u.ListEngines(limit=1000),
            touched=lambda event: [event.unit],
        ),
    ),
    decide=decide,
    evolve=evolve,
    todo=todo,
    reply=reply,
    tables=TABLES,
    project=project,
    follows={"resource": (resource.Preempted,)},
    react=react,
    outside=EngineOutside,
    settings=EngineSettings,
    node_bound=True,
)
