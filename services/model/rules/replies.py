"""Makes the replies to the model domain's commands, from the world and the events since the decision. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn, assert_never

from aima_core.domain import World
from aima_core.errors import Conflict, from_body
from aima_core.units import Event, Success, View
from services.model import internal as i
from services.model import units as u
from services.model.rules.decider import Prepared, pulled, registered
from services.model.rules.lookup import find
from services.model.rules.state import ModelState


def reply(world: World[ModelState], command: Prepared, events: Sequence[Event]) -> View | None:
    """Return the reply to a command; None until the outcome is known. Raises the error of a failed pull."""
    match command:
        case i.BeginPull(pull=pull):
            return _pulled(world, pull, events)
        case i.Register():
            created = next((event for event in events if isinstance(event, u.ModelCreated)), None)
            state = registered(world, command)
            model_id = created.model_id if created else state.id if state else ""
            return u.ModelRef(model_id=model_id)
        case i.BeginDelete(model_id=model_id):
            return None if _removing(world.get(f"model/{model_id}")) else Success()
        case u.VerifyModel(model_id=model_id):
            return _verified(find(world, model_id), events)
        case _:
            assert_never(command)


def _pulled(world: World[ModelState], command: u.PullModel, events: Sequence[Event]) -> u.Pulled | None:
    started = next((event for event in events if isinstance(event, u.PullStarted)), None)
    if started is None:
        state = pulled(world, command)
        return u.Pulled(model_id=state.id, status=_status(state)) if state else _fail_as_deleted(command)
    if not command.wait:
        return u.Pulled(model_id=started.model_id, status="pulling")
    for event in events:
        match event:
            case u.PullCompleted(run=started.run):
                return u.Pulled(model_id=event.model_id, status="ready")
            case u.PullFailed(run=started.run):
                return _fail(event)
            case u.ModelDeleted():
                return _fail_as_deleted(command)
    state = world.get(started.stream)
    if state is None or state.status == "removing":
        return _fail_as_deleted(command)
    if state.status == "pulling":
        return None
    return _fail(state.failed) if state.failed else u.Pulled(model_id=state.id, status=_status(state))


def _fail(failed: u.PullFailed) -> NoReturn:
    raise from_body({"code": failed.code, "message": failed.error, "details": failed.details})


def _fail_as_deleted(command: u.PullModel) -> NoReturn:
    raise Conflict(f"the model {command.repo} was deleted during its pull", reason="DELETED")


def _status(state: ModelState) -> u.ModelStatus:
    return "pending" if state.status == "removing" else state.status


def _verified(state: ModelState, events: Sequence[Event]) -> u.Verified | None:
    reports = [event for event in events if isinstance(event, u.ModelVerified)]
    report = reports[0] if reports else None if state.status == "verifying" else state.verified
    return u.Verified(valid=report.valid, issues=report.issues) if report else None


def _removing(state: ModelState | None) -> bool:
    return state is not None and state.status == "removing"
