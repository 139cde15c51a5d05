"""Commands that the model domain sends to itself: prepared commands of callers, and the results of effects."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from aima_core.units import Command, Success
from services.model.units import Facts, ModelRef, Pulled, PullModel


class BeginDelete(Command[Success], unit="model.begin_delete", stream="model_id"):
    """A DeleteModel command. `services`: the ids of the services that use the model; empty if `force` is true."""

    model_id: str
    force: bool
    services: tuple[str, ...]


class BeginPull(Command[Pulled], unit="model.begin_pull"):
    """A PullModel, and the damage of the model's files if the model is ready; empty if its files are intact."""

    pull: PullModel
    damage: tuple[str, ...]


class Register(Command[ModelRef], unit="model.register"):
    """A CreateModel or ImportModel command with the facts of the model's files.

    `names`: candidates for the model's name; the model gets the first free one. `named`: whether the caller chose the
    name. `path`: empty if the model has no files.
    """

    names: tuple[str, ...]
    named: bool
    imported: bool
    type: str
    format: str
    source: str
    path: str
    size: int
    checksum: str
    facts: Facts
    digests: dict[str, str] = Field(default_factory=dict)


class RecordProgress(Command[Success], unit="model.record_progress", stream="model_id"):
    """Progress of a pull. `bytes_done`: bytes so far. `bytes_total`: None if unknown. `speed`: bytes per second."""

    model_id: str
    run: int
    status: str
    bytes_done: int
    bytes_total: int | None
    speed: float


class RecordPulled(Command[Success], unit="model.record_pulled", stream="model_id"):
    """The files of a pull are complete, checked and in their final folder.

    `name`: the model's name, from the header or the file's name; empty if AIMA does not read the format.
    """

    model_id: str
    run: int
    name: str
    type: str
    format: str
    path: str
    size: int
    checksum: str
    facts: Facts
    digests: dict[str, str] = Field(default_factory=dict)


class RecordPullFailed(Command[Success], unit="model.record_pull_failed", stream="model_id"):
    """A pull has failed."""

    model_id: str
    run: int
    error: str
    error_code: str
    code: str
    details: dict[str, Any]


class RecordVerified(Command[Success], unit="model.record_verified", stream="model_id"):
    """The files of a model were verified. `intact`: whether the files match the registration."""

    model_id: str
    run: int
    issues: tuple[str, ...]
    intact: bool


class RecordRemoved(Command[Success], unit="model.record_removed", stream="model_id"):
    """The files of a deleted model were removed."""

    model_id: str


RunReports = RecordProgress | RecordPulled | RecordPullFailed | RecordVerified
"""The reports about one pull or one verification."""
Reports = RunReports | RecordRemoved
COMMANDS: tuple[type[Command[Any]], ...] = (Register, BeginDelete, BeginPull, *Reports.__args__)
