"""Decides which events a command of the model domain causes. Pure; state.py has the state diagram."""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_never

from aima_core.call import Call
from aima_core.domain import World
from aima_core.errors import Conflict
from aima_core.units import Event
from services.model import internal as i
from services.model import units as u
from services.model.rules import model_names
from services.model.rules.lookup import find, known
from services.model.rules.state import ModelState

Prepared = i.Register | i.BeginDelete | i.BeginPull | u.VerifyModel
"""The commands of callers, as `Outside.prepare` returns them."""


def decide(world: World[ModelState], command: Prepared | i.Reports, call: Call) -> list[Event]:
    """Return the events; none if the state is already as requested, or if the command reports on an earlier run."""
    match command:
        case i.BeginPull(pull=pull, damage=damage):
            return _pull(world, pull, damage, call)
        case i.Register():
            return _register(world, command)
        case i.BeginDelete():
            return _delete(find(world, command.model_id), command)
        case u.VerifyModel():
            return _verify(find(world, command.model_id), command)
        case i.RecordRemoved(model_id=model_id):
            state = world.get(f"model/{model_id}")
            return [u.FilesRemoved(model_id=model_id)] if state and state.status == "removing" else []
        case i.RecordProgress() | i.RecordPulled() | i.RecordPullFailed() | i.RecordVerified():
            state = world.get(f"model/{command.model_id}")
            return _recorded(world, state, command, call) if state and state.run == command.run else []
        case _:
            assert_never(command)


def pulled(world: World[ModelState], command: u.PullModel) -> ModelState | None:
    """Return the model of an earlier pull with the same source, repository, tag and format; None if there is none.

    The mirror may differ, because every mirror has the same files.
    """
    identity = (command.source, command.repo, command.tag)
    for state in world.values():
        pull = state.pull
        if pull is None or (pull.source, pull.repo, pull.tag) != identity:
            continue
        if command.format in (pull.format or None, state.format):  # state.format: that of the pulled files
            return state
    return None


def registered(world: World[ModelState], command: i.Register) -> ModelState | None:
    """Return the model that the command would register, if it is already registered."""
    for state in world.values():
        name_matches = not command.named or command.names[0] in (state.name, state.id)
        if command.path:
            fields = ("path", "checksum", "type", "format")
            files_match = all(getattr(state, field) == getattr(command, field) for field in fields)
        else:
            files_match = command.type == state.type and command.format in ("", state.format)
        if name_matches and files_match and state.status != "removing":
            return state
    return None


def _pull(world: World[ModelState], command: u.PullModel, damage: tuple[str, ...], call: Call) -> list[Event]:
    """Return the start of a pull; no events if the model is there and intact. `damage`: the issues of its files."""
    state = pulled(world, command)
    present = state is not None and state.status in ("ready", "verifying")
    if present and not damage:
        return []
    if state and state.status == "pulling":
        raise Conflict(
            f"{state.id} is being pulled already; model.get shows the progress",
            reason="ALREADY_PULLING",
            model_id=state.id,
        )
    if state and state.status == "removing":
        raise _being_removed(state)
    parts = (command.repo, command.tag) if command.tag else (command.repo,)
    model_id = state.id if state else model_names.slug(*parts)
    if state is None and _taken(world, model_id):
        model_id = model_names.distinct(command.source, *parts, *([command.format] if command.format else ()))
    started = u.PullStarted(
        model_id=model_id,
        source=command.source,
        repo=command.repo,
        tag=command.tag,
        mirror=command.mirror,
        run=state.run + 1 if state else 1,
        started_at=call.at,
        format=command.format or "",
        type=command.type or "",
    )
    report = u.ModelVerified(model_id=model_id, valid=False, issues=list(damage), intact=False)
    return [report, started] if present else [started]


def _register(world: World[ModelState], command: i.Register) -> list[Event]:
    if registered(world, command):
        return []
    for name in command.names:
        state = known(world, name)
        if state is None or _awaits(state, command):
            break
    else:
        state = known(world, command.names[0])
        assert state
        if state.status == "removing":
            raise _being_removed(state)
        raise Conflict(
            f"{command.names[0]} is the name or the id of another model, {state.name} ({state.id});"
            " choose another name, or delete that model",
            reason="ALREADY_EXISTS",
            field="name",
            model_id=state.id,
        )
    model_id = state.id if state else model_names.slug(name)
    if state is None and _taken(world, model_id):
        model_id = model_names.distinct(name)
    fields = ("type", "format", "source", "path", "size", "checksum", "facts", "digests")
    about = {field: getattr(command, field) for field in fields}
    created = u.ModelCreated(model_id=model_id, name=name, **about)
    return [u.ModelImported(model_id=model_id, path=command.path), created] if command.imported else [created]


def _awaits(state: ModelState, command: i.Register) -> bool:
    """Return whether the model has no files yet and may get the files of the command."""
    return state.status == "pending" and state.type == command.type and state.format in ("", command.format)


def _delete(state: ModelState, command: i.BeginDelete) -> list[Event]:
    if command.services and not command.force:
        raise Conflict(
            f"{state.id} is used by {', '.join(command.services)}; delete these services first, or set force",
            reason="IN_USE",
            model_id=state.id,
            services=list(command.services),
        )
    return [u.ModelDeleted(model_id=state.id, name=state.name)]


def _verify(state: ModelState, command: u.VerifyModel) -> list[Event]:
    expected = f"sha256:{command.checksum.removeprefix('sha256:')}" if command.checksum else ""
    if state.status == "verifying":
        assert state.verify
        if state.verify.checksum == expected:
            return []
        raise Conflict(
            f"{state.id} is being verified against another checksum; wait until this verification ends",
            reason="ALREADY_VERIFYING",
            model_id=state.id,
        )
    if state.status == "pulling":
        raise Conflict(
            f"{state.id} is being pulled; verify it when the pull is done", reason="ALREADY_PULLING", model_id=state.id
        )
    if not state.path:
        raise Conflict(f"{state.id} has no files to verify", reason="NO_FILES", model_id=state.id)
    return [u.VerifyStarted(model_id=state.id, checksum=expected, run=state.run + 1)]


def _recorded(world: World[ModelState], state: ModelState, command: i.RunReports, call: Call) -> list[Event]:
    """Return the events for a report about the current run of a model."""
    match command, state.status:
        case i.RecordProgress(bytes_done=done, bytes_total=total), "pulling":
            progress = round(min(100.0, 100 * done / total), 1) if total else 0.0
            about = {field: getattr(command, field) for field in ("status", "bytes_done", "bytes_total", "speed")}
            return [u.PullProgress(model_id=state.id, progress=progress, run=state.run, **about)]
        case i.RecordPulled(), "pulling":
            return list(_completed(world, state, command, call))
        case i.RecordPullFailed(), "pulling":
            about = {field: getattr(command, field) for field in ("error", "error_code", "code", "details")}
            return [u.PullFailed(model_id=state.id, run=state.run, **about)]
        case i.RecordVerified(issues=issues, intact=intact), "verifying":
            return [u.ModelVerified(model_id=state.id, valid=not issues, issues=list(issues), intact=intact)]
        case _:
            return []


def _completed(world: World[ModelState], state: ModelState, command: i.RecordPulled, call: Call) -> Iterator[Event]:
    assert state.pull
    duration = max(0.0, round(call.at - state.pull.started_at, 3))
    size, checksum = command.size, command.checksum
    yield u.PullCompleted(model_id=state.id, size=size, checksum=checksum, duration=duration, run=state.run)
    clash = known(world, command.name)
    name = command.name if command.name and clash in (None, state) else state.id
    fields = ("type", "format", "path", "size", "checksum", "facts", "digests")
    about = {field: getattr(command, field) for field in fields}
    yield u.ModelCreated(model_id=state.id, name=name, source=state.pull.source, **about)


def _taken(world: World[ModelState], model_id: str) -> bool:
    """Return whether a model has `model_id` as its id or as its name."""
    return known(world, model_id) is not None


def _being_removed(state: ModelState) -> Conflict:
    return Conflict(
        f"{state.id} is being removed; try again when it is gone", reason="BEING_REMOVED", model_id=state.id
    )
