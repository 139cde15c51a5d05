"""Commands that the engine domain sends to itself: prepared installs and starts, and the results of its effects."""

from __future__ import annotations

from typing import Any

from aima_core.units import Command, Success
from services.engine.units import Health, Installed, Phase, Started


class BeginInstall(Command[Installed], unit="engine.begin_install", stream="name"):
    """An InstallEngine command, with facts about the installed package.

    `have`: the installed version. `present`: whether the installed version is the requested one.
    """

    name: str
    version: str
    present: bool
    path: str
    have: str


class BeginStart(Command[Started], unit="engine.begin_start", stream="process_id"):
    """A StartEngine command, with the facts for its decision: the model's data, and ports that were free just before.

    `port_range`: the first and the last port for instances.
    """

    process_id: str
    name: str
    type: str
    runtime: str
    service_id: str
    model_id: str
    model_name: str
    model_path: str
    model_type: str
    config: dict[str, Any]
    host: str
    address: str = ""
    port: int | None
    free_ports: tuple[int, ...]
    port_range: tuple[int, int] = (1024, 65535)
    memory: int
    gpu_fraction: float = 0.0
    priority: int
    wait: bool
    timeout: float


class RecordInstalled(Command[Success], unit="engine.record_installed", stream="name"):
    """The package of an engine is installed."""

    name: str
    version: str
    path: str


class RecordInstallFailed(Command[Success], unit="engine.record_install_failed", stream="name"):
    """The installation of an engine's package has failed."""

    name: str
    error: str
    error_code: str


class RecordProgress(Command[Success], unit="engine.record_progress", stream="process_id"):
    """The start of an instance has reached another phase."""

    process_id: str
    run: int
    phase: Phase
    message: str
    progress: float


class RecordReady(Command[Success], unit="engine.record_ready", stream="process_id"):
    """The instance answers its health endpoint."""

    process_id: str
    run: int
    served_model: str
    dialect: str
    pid: int
    pid_started_at: float
    boot: str = ""


class RecordHealth(Command[Success], unit="engine.record_health", stream="process_id"):
    """The instance became healthy or unhealthy."""

    process_id: str
    run: int
    status: Health


class RecordFailed(Command[Success], unit="engine.record_failed", stream="process_id"):
    """The start of an instance has failed, or the process of an instance has died."""

    process_id: str
    run: int
    error: str
    error_code: str
    exit_code: int | None = None


class RecordOverdue(Command[Success], unit="engine.record_overdue", stream="process_id"):
    """The deadline of a stop has passed, and the process of the instance still runs."""

    process_id: str
    run: int


class RecordOrphan(Command[Success], unit="engine.record_orphan", stream="process_id"):
    """AIMA ends an engine process that the log does not know. An unknown field is empty; an unknown `run` is 0."""

    process_id: str
    name: str
    service_id: str
    run: int


class RecordGone(Command[Success], unit="engine.record_gone", stream="process_id"):
    """The process of an instance has ended."""

    process_id: str
    run: int
    exit_code: int | None = None


RunReports = RecordProgress | RecordReady | RecordHealth | RecordFailed | RecordOverdue | RecordGone
"""The reports about one run of an instance."""
Reports = RunReports | RecordInstalled | RecordInstallFailed | RecordOrphan
COMMANDS: tuple[type[Command[Any]], ...] = (BeginInstall, BeginStart, *Reports.__args__)
