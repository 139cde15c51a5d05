"""Commands that the model domain sends itself: prepared registrations, and results of pulls and verifications."""

from __future__ import annotations

from typing import Any

from aima_core.units import Command, Success
from services.model.units import Facts, ModelRef


class BeginDelete(Command[Success], unit="model.begin_delete", stream="model_id"):
    """A DeleteModel with the ids of the services that use the model; empty if forced."""

    model_id: str
    force: bool
    services: tuple[str, ...]


class Register(Command[ModelRef], unit="model.register"):
    """A CreateModel or ImportModel with the facts of its files. `names`: candidates; the first free one is used.

    `path` is empty if there are no files; `named`: whether the caller chose the name.
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


class RecordProgress(Command[Success], unit="model.record_progress", stream="model_id"):
    """Progress of a pull: bytes so far, bytes in total if known, bytes per second."""

    model_id: str
    run: int
    status: str
    bytes_done: int
    bytes_total: int | None
    speed: float


class RecordPulled(Command[Success], unit="model.record_pulled", stream="model_id"):
    """The files are complete, checked and in their final folder. `name` is from their header."""

    model_id: str
    run: int
    name: str
    type: str
    format: str
    path: str
    size: int
    checksum: str
    facts: Facts


class RecordPullFailed(Command[Success], unit="model.record_pull_failed", stream="model_id"):
    """The pull has failed."""

    model_id: str
    run: int
    error: str
    error_code: str
    code: str
    details: dict[str, Any]


class RecordVerified(Command[Success], unit="model.record_verified", stream="model_id"):
    """The files were verified."""

    model_id: str
    run: int
    issues: tuple[str, ...]
    intact: bool


class RecordRemoved(Command[Success], unit="model.record_removed", stream="model_id"):
    """The files have been removed."""

    model_id: str


RunReports = RecordProgress | RecordPulled | RecordPullFailed | RecordVerified
"""The reports of an effect of one run."""
Reports = RunReports | RecordRemoved
COMMANDS: tuple[type[Command[Any]], ...] = (Register, BeginDelete, *Reports.__args__)
