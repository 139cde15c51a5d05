"""The internal commands of the inference domain: they start requests, and record failures and events of services."""

from __future__ import annotations

from typing import Any

from aima_core.units import Command, Success
from services.inference.units import Phase


class BeginRequest(Command[Success], unit="inference.begin_request"):
    """Start a request on a replica. The sender sets `request_id`, so it can settle the request even without the reply.

    `avoid`: the replica that has just failed the request. It is chosen only if no other replica is free; with
    `strictly`, it is never chosen. `only`: no other replica is chosen, and this one also if its breaker is open.
    `client`: the client of the gateway, or TRIAL. `deadline`: when the request ends at the latest, in Unix seconds; 0:
    at the end of `timeout`.
    """

    model: str
    types: tuple[str, ...]
    timeout: float
    request_id: str = ""
    holder: str = ""
    avoid: str = ""
    strictly: bool = False
    needs_tools: bool = False
    only: str = ""
    client: str = ""
    deadline: float = 0.0


class RecordExpired(Command[Success], unit="inference.record_expired", stream="service_id"):
    """Record that a lease was not settled in time, or that the process that sent the request has ended."""

    service_id: str
    request_id: str
    error: str
    error_code: str


class RecordRefused(Command[Success], unit="inference.record_refused", stream="service_id"):
    """Record that `count` requests got no replica."""

    service_id: str
    count: int


class RecordService(Command[Success], unit="inference.record_service", stream="service_id"):
    """Record that a service was created."""

    service_id: str
    service_name: str
    model_id: str
    model_name: str
    type: str


class RecordRemoved(Command[Success], unit="inference.record_removed", stream="service_id"):
    """Record that a service was deleted."""

    service_id: str


class RecordPhase(Command[Success], unit="inference.record_phase", stream="service_id"):
    """Record that a service entered a phase. Unless the phase is `starting` or `running`, also removes its routes."""

    service_id: str
    phase: Phase
    error: str = ""
    error_code: str = ""


class RecordRoute(Command[Success], unit="inference.record_route", stream="service_id"):
    """Record that a replica has started and answers."""

    service_id: str
    service_name: str
    model_id: str
    model_name: str
    type: str
    process_id: str
    endpoint: str
    served_model: str
    dialect: str
    tools: bool
    slots: int = 0
    engine: str = ""
    device: str = ""
    cancels_whole: bool = True


class RecordHealth(Command[Success], unit="inference.record_health", stream="service_id"):
    """Record that a replica has stopped answering its health check, or answers it again."""

    service_id: str
    process_id: str
    healthy: bool


class RecordNoRoute(Command[Success], unit="inference.record_no_route", stream="service_id"):
    """A replica ended, or gets no more requests. `crashed`: its process ended by its own fault."""

    service_id: str
    process_id: str
    crashed: bool = False


Reports = (
    RecordExpired
    | RecordRefused
    | RecordService
    | RecordRemoved
    | RecordPhase
    | RecordRoute
    | RecordHealth
    | RecordNoRoute
)
COMMANDS: tuple[type[Command[Any]], ...] = (BeginRequest, *Reports.__args__)
