"""Finds the model that a caller means by an id or a name. Pure."""

from __future__ import annotations

from aima_core.domain import World
from aima_core.errors import NotFound
from aima_core.suggestions import did_you_mean, find_named, nearest
from services.model import units as u
from services.model.rules.state import ModelState


def resolve(world: World[ModelState], text: str) -> str:
    """Return the id of the model that `text` names; if there is none, return `text`. See `names_of`.

    Raises ValidationFailed (AMBIGUOUS) if several models have this name.
    """
    if f"model/{text}" in world:
        return text
    return find_named(text, {state.id: names_of(state) for state in world.values()}, "model_id") or text


def names_of(state: ModelState) -> list[str]:
    """Return a model's names beside its id: its own, and that of its repository, with and without the hub's host.

    The name of the repository has the tag of the pull, such as `hf.co/maker/model:Q4_K_M`.
    """
    pull = state.pull
    if pull is None or not pull.repo:
        return [state.name]
    hosts = [f"{host}/" for host, source in u.HOSTS.items() if source == pull.source]
    tag = f":{pull.tag}" if pull.tag else ""
    return [state.name, *(f"{host}{pull.repo}{tag}" for host in ("", *hosts))]


def known(world: World[ModelState], name: str) -> ModelState | None:
    """Return the model whose id or name is exactly `name`; an id has precedence. If there is none, return None."""
    exact = world.get(f"model/{name}")
    return exact or next((state for state in world.values() if state.name == name), None)


def find(world: World[ModelState], model_id: str) -> ModelState:
    """Return the model with this id. Raises NotFound if there is no such model, or if the model is being removed."""
    state = world.get(f"model/{model_id}")
    if state is None or state.status == "removing":
        raise unknown(world, model_id)
    return state


def unknown(world: World[ModelState], model_id: str) -> NotFound:
    """Return the error NotFound (MODEL_NOT_FOUND) for an id or name that no model has. Suggests the nearest ids."""
    similar = nearest(model_id, (state.id for state in world.values() if state.status != "removing"))
    return NotFound(
        f"there is no model {model_id}{did_you_mean(similar) or '; model.list shows the registered models'}",
        reason="MODEL_NOT_FOUND",
        model_id=model_id,
        similar=similar,
    )
