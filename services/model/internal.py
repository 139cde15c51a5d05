"""Commands of the model domain to itself: what a registration begins with, and what came of a pull or a check."""

from __future__ import annotations

from typing import Any

from aima_core.units import Command, Success
from services.model.units import Facts, ModelRef


class BeginDelete(Command[Success], unit="model.begin_delete", stream="model_id"):
    """A DeleteModel with the ids of the services that use the model."""

    model_id: str
    force: bool
    services: tuple[str, ...]


class Register(Command[ModelRef], unit="model.register"):
    """A CreateModel or an ImportModel with what the files say. `names`: the wishes, the first free one is taken.

    `path` is empty when there are no files; `named` tells whether the caller chose the name.
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
    """A pull has come further."""

    model_id: str
    run: int
    status: str
    bytes_done: int
    bytes_total: int | None
    speed: float


class RecordPulled(Command[Success], unit="model.record_pulled", stream="model_id"):
    """The files lie where they stay, and their digest matched. `name` is what their header says."""

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
    """The files could not be had."""

    model_id: str
    run: int
    error: str
    error_code: str
    code: str
    details: dict[str, Any]


class RecordVerified(Command[Success], unit="model.record_verified", stream="model_id"):
    """The files were read."""

    model_id: str
    run: int
    issues: tuple[str, ...]
    intact: bool


class RecordRemoved(Command[Success], unit="model.record_removed", stream="model_id"):
    """The files are gone."""

    model_id: str
