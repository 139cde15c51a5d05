"""The model domain, assembled: read this first.

It manages the registry of models and their files. `units.py` is the contract. `rules/` is pure: `state` defines a
model, `decider` decides commands. `outside/` does I/O; `files/` works on local files, `headers/` reads the headers of
model files, `paths/` walks through their folders, `selection/` chooses the files of a model in a list, `sources/` has
one file per hub.
"""

from __future__ import annotations

from aima_core.domain import Domain
from aima_core.units import Event, Resource
from services.model import internal as i
from services.model import units as u
from services.model.outside.adapter import ModelOutside
from services.model.rules import decider, lookup, replies, state, views
from services.model.settings import ModelSettings


def _registry(event: Event) -> list[str]:
    """Return the id of the resource about all models if the event changes this resource. Pull progress does not."""
    return [] if isinstance(event, u.PullProgress) else ["all"]


MODEL = Domain(
    name="model",
    about="The registry of models and their files.",
    state=state.ModelState,
    events=u.EVENTS,
    commands=u.COMMANDS,
    internal=i.COMMANDS,
    queries=u.QUERIES,
    resources=(
        Resource(
            uri="asms://model/{id}",
            about="One model.",
            query=lambda ident: u.GetModel(model_id=ident or ""),
            touched=lambda event: [getattr(event, event.stream_field)],
        ),
        Resource(
            uri="asms://models/registry",
            about="All models.",
            query=lambda _: u.ListModels(limit=1000),
            touched=_registry,
        ),
        Resource(
            uri="asms://models/compatibility",
            about="Which engines serve which models.",
            query=lambda _: u.GetCompatibility(),
            touched=_registry,
        ),
    ),
    resolve=lookup.resolve,
    decide=decider.decide,
    evolve=state.evolve,
    todo=state.todo,
    reply=replies.reply,
    tables=views.TABLES,
    project=views.project,
    outside=ModelOutside,
    settings=ModelSettings,
)
