"""Commands of the inference domain to itself: how a request gets its replica, and the news of services."""

from __future__ import annotations

from aima_core.units import Command, Success
from services.inference.units import Phase


class BeginRequest(Command[Success], unit="inference.begin_request"):
    """Give a request its replica. `request_id` is chosen by whoever may have to give it back before hearing of it.

    `avoid` is a replica that has just failed it: taken only if there is no other, or `strictly` not at all.
    """

    model: str
    types: tuple[str, ...]
    timeout: float
    request_id: str = ""
    holder: str = ""
    avoid: str = ""
    strictly: bool = False
    needs_tools: bool = False


class RecordExpired(Command[Success], unit="inference.record_expired", stream="service_id"):
    """A lease was not settled in time, or the process that carried it is gone."""

    service_id: str
    request_id: str
    error: str
    error_code: str


class RecordRefused(Command[Success], unit="inference.record_refused", stream="service_id"):
    """So many requests were turned away."""

    service_id: str
    count: int


class RecordService(Command[Success], unit="inference.record_service", stream="service_id"):
    """A service is registered."""

    service_id: str
    service_name: str
    model_id: str
    model_name: str
    type: str


class RecordRemoved(Command[Success], unit="inference.record_removed", stream="service_id"):
    """A service is no longer registered."""

    service_id: str


class RecordPhase(Command[Success], unit="inference.record_phase", stream="service_id"):
    """A service is on another part of its way; unless it starts or runs, it has no replicas any more."""

    service_id: str
    phase: Phase
    error: str = ""
    error_code: str = ""


class RecordRoute(Command[Success], unit="inference.record_route", stream="service_id"):
    """A replica answers."""

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
    """A replica has begun or ceased to answer."""

    service_id: str
    process_id: str
    healthy: bool


class RecordNoRoute(Command[Success], unit="inference.record_no_route", stream="service_id"):
    """A replica is gone, or gets no more requests."""

    service_id: str
    process_id: str
