r"""The state of a model: how events change it, and which effects it needs. Pure.

(nothing) --pull--> pulling --pulled--> ready <--verified-- verifying
                     |  ^  \--failed--> error <--damaged---/   ^
                     |  +----pull again---+ |  \----verify-----+
                     +-----delete-----------+--delete--> removing --removed--> (nothing)

(nothing) --create--> pending --files--> ready          imported files are never removed: no `removing`
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, assert_never

import msgspec

from aima_core.domain import Effect
from services.model import units as u

Status = Literal["pending", "pulling", "ready", "error", "verifying", "removing"]


class ModelState(msgspec.Struct, frozen=True):
    """The state of a model. `pull` is None if the model was never pulled."""

    id: str
    name: str
    status: Status
    type: str = ""
    format: str = ""
    source: str = ""
    path: str = ""
    size: int = 0
    checksum: str = ""
    facts: u.Facts = {}
    digests: dict[str, str] = {}
    run: int = 0
    pull: u.PullStarted | None = None
    failed: u.PullFailed | None = None
    verify: u.VerifyStarted | None = None
    verified: u.ModelVerified | None = None


class Pull(Effect, frozen=True):
    """Download the files, check them, move them to their final folder."""

    model_id: str
    run: int
    source: str
    repo: str
    tag: str | None
    mirror: str | None
    started_at: float
    format: str = ""
    type: str = ""


class Verify(Effect, frozen=True):
    """Check the files against the recorded size and checksum. `expected`: the caller's own checksum, or empty."""

    model_id: str
    run: int
    path: str
    format: str
    size: int
    checksum: str
    expected: str
    digests: tuple[tuple[str, str], ...] = ()


class Remove(Effect, frozen=True):
    """Remove the pulled files."""

    model_id: str


def evolve(state: ModelState | None, event: u.Events) -> ModelState | None:
    """Return the model after the event. Never raises."""
    match event:
        case u.PullStarted():
            model = state or ModelState(event.model_id, event.model_id, "pulling")
            return msgspec.structs.replace(
                model, status="pulling", source=event.source, pull=event, failed=None, run=event.run
            )
        case u.ModelCreated():
            return msgspec.structs.replace(
                state or ModelState(event.model_id, event.name, "pending"),
                name=event.name,
                status="ready" if event.path else "pending",
                type=event.type,
                format=event.format,
                source=event.source,
                path=event.path,
                size=event.size,
                checksum=event.checksum,
                facts=event.facts,
                digests=event.digests,
                verified=None,
            )
        case u.ModelImported() | u.PullProgress() | u.PullCompleted():
            return state  # ModelCreated accompanies ModelImported and PullCompleted
        case u.FilesRemoved():
            return None
    if state is None:
        return None
    match event:
        case u.PullFailed():
            return msgspec.structs.replace(state, status="error", failed=event)
        case u.VerifyStarted():
            return msgspec.structs.replace(state, status="verifying", verify=event, run=event.run)
        case u.ModelVerified():
            return msgspec.structs.replace(state, status="ready" if event.intact else "error", verified=event)
        case u.ModelDeleted():
            return msgspec.structs.replace(state, status="removing") if state.pull else None
        case _:
            assert_never(event)


def todo(state: ModelState) -> Iterable[Effect]:
    """Return the effects that the state needs."""
    match state.status:
        case "pulling":
            assert state.pull
            pull = state.pull
            of_hub = pull.source, pull.repo, pull.tag, pull.mirror
            return [Pull(state.id, state.run, *of_hub, pull.started_at, pull.format, pull.type)]
        case "verifying":
            assert state.verify
            checksums = state.checksum, state.verify.checksum
            digests = tuple(sorted(state.digests.items()))
            return [Verify(state.id, state.run, state.path, state.format, state.size, *checksums, digests)]
        case "removing":
            return [Remove(state.id)]
        case "pending" | "ready" | "error":
            return []
        case _:
            assert_never(state.status)
